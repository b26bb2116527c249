"""Products with a quantised weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require_floating, wide
from m2ml.ops.dequantize import check_quantized, dequantize, random_quantized
from m2ml.ops.inputs import normal
from m2ml.ops.quantize import BITS, GROUP_SIZES, Quantized, decoded

Array = jax.Array


@op(shapes="x[*b n], w[m n] -> [*b m]")
def quantized_matmul(x: Array, w: Quantized, /) -> Array:
    """``x @ dequantize(w).T``: `mx.quantized_matmul` with its usual transposed weight.

    ``x`` is ``[*b, n]``, ``w`` a `Quantized` array ``[m, n]``; the result is ``[*b, m]`` in ``x``'s dtype. Elements of
    ``w`` are rounded as `dequantize` rounds them (an engine may keep more), products are added in float32, and half
    precision is rounded once. An engine may hold ``x`` as whole numbers of 24 bits, a few neighbours to one exponent,
    and add them exactly: beside the largest of the neighbours that is as precise as float32. The weight is frozen: only
    ``x`` has a gradient, ``g @ dequantize(w)``; to train scales and biases write ``x @ dequantize(w).T``, where MLX has
    gradients for them here too.
    """
    types(x, w)
    weight = jax.lax.stop_gradient(dequantize.definition(w))
    return jnp.matmul(wide(x), wide(weight).T).astype(x.dtype)


@quantized_matmul.give_types
def types(x: Any, w: Any) -> jax.ShapeDtypeStruct:
    require_floating("quantized_matmul", x=x)
    check_quantized("quantized_matmul", w)
    return jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[0]), x.dtype)


@quantized_matmul.give_samples
def samples() -> Iterator[Sample]:
    for bits in BITS:
        size = GROUP_SIZES[bits % 3]
        yield Sample(f"{bits} bits of {size}", (normal((2, 128), bits), random_quantized((3, 128), bits, size)))
    yield Sample("mxfp4", (normal((2, 64), 1), random_quantized((5, 64), 4, 32, "mxfp4")))
    yield Sample("mxfp4, one row, 9 groups", (normal((1, 288), 11), random_quantized((7, 288), 4, 32, "mxfp4")))
    yield Sample("mxfp4, 11 rows", (normal((11, 32), 12), random_quantized((50, 32), 4, 32, "mxfp4")))
    yield Sample("one row", (normal((64,), 2), random_quantized((7, 64))))
    yield Sample("one output", (normal((3, 32), 3), random_quantized((1, 32), 8, 32)))
    yield Sample("two leading axes", (normal((2, 3, 32), 4), random_quantized((2, 32), 5, 32)))
    yield Sample("33 rows", (normal((33, 32), 5), random_quantized((9, 32), 4, 32)))
    yield Sample("no rows", (normal((0, 32)), random_quantized((2, 32), 4, 32)))
    yield Sample("no columns", (normal((2, 0)), random_quantized((3, 0))))
    yield Sample("large", (normal((2, 32), 6, 1e6), random_quantized((3, 32), 3, 32)))
    uneven = normal((1, 576), 7) * (10.0 ** np.random.default_rng(7).uniform(-6, 6, 576)).astype(np.float32)
    yield Sample("wide range, 9 groups", (uneven, random_quantized((5, 576))))
    yield Sample("5 rows, 17 groups", (normal((5, 544), 8), random_quantized((3, 544), 2, 32)))
    yield Sample("tiny", (normal((2, 64), 9, 1e-34), random_quantized((3, 64))))
    infinite = normal((2, 64), 10)
    infinite[0, 5] = np.inf
    yield Sample("infinite", (infinite, random_quantized((3, 64), 4, 32)))
    one_hot = np.eye(32, dtype=np.float32)[[0, 31, 7]]
    yield Sample("one-hot", (one_hot, random_quantized((3, 32), 6, 32)))


@quantized_matmul.law
def a_one_hot_row_reads_a_column(op: Any, x: Any, w: Any, **static: Any) -> None:
    if x.shape[-1]:
        columns = np.arange(x.shape[-1])[:: max(x.shape[-1] // 7, 1)]
        got = np.asarray(op(np.eye(x.shape[-1], dtype=x.dtype)[columns], w), float)
        wanted = decoded(w)[:, columns].T
        np.testing.assert_allclose(got, wanted, atol=1e-6 * max(np.abs(decoded(w)).max(initial=0), 1) * 4)


@quantized_matmul.law
def twice_the_input_is_twice_the_result(op: Any, x: Any, w: Any, **static: Any) -> None:
    np.testing.assert_array_equal(op(2 * x, w), 2 * np.asarray(op(x, w)))


@quantized_matmul.give_cost
def cost(x: Any, w: Any, **static: Any) -> tuple[int, int]:
    """A product and a sum for each element of the weight and row of x; every array is moved once."""
    rows = x.size // max(x.shape[-1], 1)
    leaves = [leaf for leaf in (w.packed, w.scales, w.biases) if leaf is not None]
    moved = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return 2 * x.size * w.shape[0], moved + (x.size + rows * w.shape[0]) * x.dtype.itemsize


def _other_weight(x: Array, w: Quantized, **changed: Any) -> Any:
    return quantized_matmul.definition(x, dataclasses.replace(w, **changed))


@quantized_matmul.fault
def biases_ignored(x: Array, w: Quantized, /) -> Any:
    return _other_weight(x, w, biases=None if w.biases is None else jnp.zeros_like(w.biases))


@quantized_matmul.fault
def bias_added_once_a_group(x: Array, w: Quantized, /) -> Any:
    """As if it belonged to the sum of a group, not to each element of it."""
    return _other_weight(x, w, biases=None if w.biases is None else w.biases / w.group_size)


@quantized_matmul.fault
def scales_of_the_next_row(x: Array, w: Quantized, /) -> Any:
    return _other_weight(x, w, scales=jnp.roll(w.scales, 1, axis=0))


@quantized_matmul.fault
def last_group_left_out(x: Array, w: Quantized, /) -> Any:
    place = jnp.arange(x.shape[-1]) < max(x.shape[-1] - w.group_size, w.group_size)
    return quantized_matmul.definition(jnp.where(place, x, 0), w)


@quantized_matmul.fault
def input_rounded_to_half(x: Array, w: Quantized, /) -> Any:
    return quantized_matmul.definition(x.astype(jnp.bfloat16).astype(x.dtype), w)


@quantized_matmul.fault
def input_rounded_to_8_bits(x: Array, w: Quantized, /) -> Any:
    """As engines that multiply whole numbers have it."""
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=1e-30) / 127
    return quantized_matmul.definition((jnp.round(x / step) * step).astype(x.dtype), w)


@quantized_matmul.fault
def words_in_reverse(x: Array, w: Quantized, /) -> Any:
    return _other_weight(x, w, packed=w.packed[..., ::-1])


@quantized_matmul.fault
def half_precision_sum(x: Array, w: Quantized, /) -> Any:
    return quantized_matmul.definition(x, w).astype(jnp.bfloat16).astype(x.dtype)


@quantized_matmul.fault
def result_clipped(x: Array, w: Quantized, /) -> Any:
    """At the largest float16, as an engine that adds in it does."""
    return jnp.clip(quantized_matmul.definition(x, w), -65504, 65504).astype(x.dtype)
