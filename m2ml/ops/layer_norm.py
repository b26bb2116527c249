"""Layer normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require_at_least, require_floating, wide
from m2ml.ops.inputs import normal, rows

Array = jax.Array


@op(shapes="x[*b n], weight?[n], bias?[n] -> [*b n]")
def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, /, *, eps: float = 1e-5) -> Array:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last axis (Ba, Kiros and Hinton, 2016).

    ``x`` is ``[*b, n]``, ``weight`` and ``bias`` ``[n]``, or None for ones and zeros; the result has ``x``'s shape and
    dtype. The variance is the mean square of ``x - mean(x)``, divided by n. Half precision is worked out in float32
    and rounded once. PyTorch and MLX take the same ``eps``; Flax's default is 1e-6. Raises TypeError where an array
    is not floating.
    """
    require_floating("layer_norm", x=x, weight=weight, bias=bias)
    require_at_least("layer_norm", 0, eps=eps)
    centred = wide(x) - jnp.mean(wide(x), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight.astype(y.dtype)
    y = y if bias is None else y + bias.astype(y.dtype)
    return y.astype(x.dtype)


@layer_norm.give_samples
def samples() -> Iterator[Sample]:
    for i, (name, x) in enumerate(rows()):
        n = x.shape[-1]
        weight, bias = np.linspace(-2, 2, n, dtype=np.float32), np.linspace(1, 3, n, dtype=np.float32)
        yield Sample(name, (x, weight if i % 4 != 1 else None, bias if i % 4 < 2 else None))
    yield Sample("large eps", (normal((3, 5)), None, None), {"eps": 0.5})
    yield Sample("far from zero", (normal((2, 33), 4) + np.float32(1000), None, None))
    yield Sample("beside zero", (normal((3, 65), 5) + np.array([[1.3], [1.7], [2.2]], np.float32), None, None))


@layer_norm.law
def rows_have_mean_zero_and_variance_one(op: Any, x: Any, *args: Any, **static: Any) -> None:
    if x.size and np.all(np.var(x.astype(float), -1) > 1e-3 * np.max(np.square(x, dtype=float), -1)):
        y, unit = np.asarray(op(x, None, None, eps=0.0), float), float(jnp.finfo(x.dtype).eps)
        assert np.all(np.abs(np.mean(y, -1)) <= 100 * unit)
        assert np.all(np.abs(np.var(y, -1) - 1) <= 100 * unit)


@layer_norm.law
def the_bias_is_added_and_the_weight_multiplies(op: Any, x: Any, weight: Any, bias: Any, **static: Any) -> None:
    if weight is not None and x.dtype == np.float32:
        plain, both = op(x, None, None, **static), op(x, weight, weight, **static)
        np.testing.assert_allclose(both, plain * weight + weight, rtol=1e-5, atol=1e-5 * np.abs(plain).max(initial=1))


@layer_norm.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    y = op(
        np.array([1.0, 3.0], np.float32), np.array([1.0, 2.0], np.float32), np.array([0.0, 5.0], np.float32), eps=3.0
    )
    np.testing.assert_allclose(y, [-0.5, 6.0], rtol=1e-6)


layer_norm.give_cost(lambda x, weight=None, bias=None, **static: (8 * x.size, 2 * x.size * x.dtype.itemsize))


@layer_norm.fault
def eps_ignored(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    return layer_norm.definition(x, weight, bias, eps=0.0)


@layer_norm.fault
def not_centred(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


@layer_norm.fault
def bias_ignored(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    return layer_norm.definition(x, weight, None, eps=eps)


@layer_norm.fault
def weight_also_on_the_bias(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    return layer_norm.definition(x, weight, bias if weight is None or bias is None else bias * weight, eps=eps)


@layer_norm.fault
def unbiased_variance(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    centred, n = x - jnp.mean(x, axis=-1, keepdims=True), x.shape[-1]
    y = centred * jax.lax.rsqrt(jnp.sum(centred * centred, axis=-1, keepdims=True) / max(n - 1, 1) + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


@layer_norm.fault
def variance_from_the_mean_square(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    """``mean(x**2) - mean(x)**2`` cancels where the rows are far from zero."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0)
    y = (x - mean) * jax.lax.rsqrt(variance + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


@layer_norm.fault
def half_precision_inside(x: Array, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Any:
    return layer_norm.definition(x.astype(jnp.bfloat16), weight, bias, eps=eps).astype(x.dtype)
