"""A linear layer with bias and activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.activations import ACTIVATIONS
from m2ml.ops.arguments import require_floating, require_one_of, wide
from m2ml.ops.inputs import normal

Array = jax.Array

_NAME = "linear_bias_act"


@op(shapes="x[*b n], weight[m n], bias?[m] -> [*b m]")
def linear_bias_act(x: Array, weight: Array, bias: Array | None = None, /, *, activation: str = "none") -> Array:
    """``activation(x @ weight.T + bias)``.

    ``x`` is ``[*b, n]``, ``weight`` ``[m, n]`` as PyTorch and MLX keep it, ``bias`` ``[m]`` or None, ``activation`` one
    of `m2ml.ops.activations`. The result ``[*b, m]`` has the wider dtype of ``x`` and ``weight``. Half precision is
    added up in float32 and rounded; bias and activation are worked out in float32 from there and rounded once more (an
    engine may leave the first rounding out). Its gradient works out the product again where there is an activation.
    Raises TypeError where an array is not floating and ValueError for an activation that is not known.
    """
    require_floating(_NAME, x=x, weight=weight, bias=bias)
    require_one_of(_NAME, "activation", activation, ACTIVATIONS)
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    last = ((x.ndim - 1,), (1,)), ((), ())
    y = jax.lax.dot_general(x.astype(dtype), weight.astype(dtype), last)
    if bias is None and activation == "none":
        return y
    y = wide(y) if bias is None else wide(y) + wide(bias)
    return ACTIVATIONS[activation](y).astype(dtype)


@linear_bias_act.give_samples
def samples() -> Iterator[Sample]:
    cases: list[tuple[tuple[int, ...], int]] = [
        ((1, 1), 1),
        ((3, 2), 3),
        ((7,), 5),
        ((2, 3, 8), 33),
        ((13, 31), 7),
        ((5, 33), 17),
        ((8, 257), 2),
        ((49, 16), 65),
        ((0, 4), 3),
        ((2, 0), 3),
        ((2, 3), 0),
    ]
    for i, (x, outputs) in enumerate(cases):
        bias = normal((outputs,), 80 + i) if i % 3 else None
        static = {"activation": list(ACTIVATIONS)[i % len(ACTIVATIONS)]} if i else {}
        yield Sample(f"{x} to {outputs}", (normal(x, i), normal((outputs, x[-1]), 40 + i), bias), static)
    large, small = normal((2, 31), 1, 1e6), normal((2, 31), 2, 1e-6)
    yield Sample("large", (large, normal((3, 31), 3), normal((3,), 4)), {"activation": "gelu"})
    yield Sample("small", (small, normal((3, 31), 5), normal((3,), 6, 1e-6)), {"activation": "gelu_tanh"})
    yield Sample("one-hot", (np.eye(9, dtype=np.float32)[[0, 8, 4]], normal((5, 9), 7), normal((5,), 8)))


@linear_bias_act.law
def a_one_hot_row_reads_a_column(op: Any, x: Any, weight: Any, bias: Any, **static: Any) -> None:
    inputs = x.shape[-1]
    if inputs:
        columns = np.arange(inputs)[:: max(inputs // 7, 1)]
        got = np.asarray(op(np.eye(inputs, dtype=x.dtype)[columns], weight.astype(x.dtype), None))
        np.testing.assert_array_equal(got, weight.astype(x.dtype)[:, columns].T)


@linear_bias_act.law
def without_a_weight_only_the_bias_is_left(op: Any, x: Any, weight: Any, bias: Any, **static: Any) -> None:
    if bias is not None and x.dtype == np.float32:
        y = op(x, np.zeros_like(weight), np.abs(bias), activation="relu")
        np.testing.assert_array_equal(y, np.broadcast_to(np.abs(bias), y.shape))


@linear_bias_act.law
def worked_numbers(op: Any, *args: Any, **static: Any) -> None:
    x, weight = np.array([[1, 2], [-3, 0.5]], np.float32), np.array([[1, 10], [2, 0], [0, -1]], np.float32)
    bias = np.array([0, 100, 1], np.float32)
    np.testing.assert_array_equal(op(x, weight, bias), [[21, 102, -1], [2, 94, 0.5]])
    np.testing.assert_array_equal(op(x, weight, bias, activation="relu6"), [[6, 6, 0], [2, 6, 0.5]])
    level = np.array([2, -6, -0.5])
    known = [z * math.erfc(-z / math.sqrt(2)) / 2 for z in level]
    # The normal distribution is within 3 units of 1, and the product with the level rounds once.
    bound = 4 * np.finfo(np.float32).eps * np.abs(level)
    assert np.all(np.abs(op(x, weight, None, activation="gelu")[1] - known) <= bound)


def _cost(x: Any, weight: Any, bias: Any = None, **static: Any) -> tuple[int, int]:
    rows = x.size // max(x.shape[-1], 1)
    moved = x.size * x.dtype.itemsize + weight.size * weight.dtype.itemsize
    out = rows * weight.shape[0] * jnp.promote_types(x.dtype, weight.dtype).itemsize
    return 2 * rows * weight.size, moved + out


linear_bias_act.give_cost(_cost)


@linear_bias_act.fault
def bias_after_the_activation(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    y = linear_bias_act.definition(x, weight, **static)
    return y if bias is None else y + bias


@linear_bias_act.fault
def bias_ignored(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    return linear_bias_act.definition(x, weight, None, **static)


@linear_bias_act.fault
def activation_ignored(*arrays: Any, activation: str = "none") -> Any:
    return linear_bias_act.definition(*arrays)


@linear_bias_act.fault
def gelu_by_its_approximation(*arrays: Any, activation: str = "none") -> Any:
    return linear_bias_act.definition(*arrays, activation="gelu_tanh" if activation == "gelu" else activation)


@linear_bias_act.fault
def last_input_ignored(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    n = x.shape[-1]
    return linear_bias_act.definition(x * (jnp.arange(n) < n - n % 2), weight, bias, **static)


@linear_bias_act.fault
def outputs_beyond_a_vector_have_no_bias(x: Array, weight: Array, bias: Any = None, **static: Any) -> Any:
    m = weight.shape[0]
    given = None if bias is None else jnp.where(jnp.arange(m) < m - m % 16, bias, 0)
    return linear_bias_act.definition(x, weight, given, **static)


@linear_bias_act.fault
def half_precision_inside(x: Array, weight: Array, *rest: Any, **static: Any) -> Any:
    narrow = linear_bias_act.definition(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), *rest, **static)
    return narrow.astype(x.dtype)
