"""The numbers of a quantised array."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.inputs import normal
from m2ml.ops.quantize import BITS, FP4, GROUP_SIZES, Quantized, check_format, decoded, fp4_scale, unpack

Array = jax.Array


@op(shapes="w[*b n] -> [*b n]")
def dequantize(w: Quantized, /, *, dtype: Any = None) -> Array:
    """The elements ``[*b, n]`` of a `Quantized` array: what `mx.dequantize` gives.

    ``scale * code + bias``, product and sum each rounded to the dtype of the scales, as MLX has it; an engine may
    round once. ``2**(scale - 127) * number`` for mxfp4 is exact. The result is of ``dtype``: unless given, that of the
    scales, and bfloat16 for mxfp4. Scales and biases have gradients, codes have none.
    """
    wanted = types(w, dtype=dtype).dtype
    groups = unpack(w.packed, w.bits).reshape(*w.scales.shape, w.group_size)
    if w.mode == "mxfp4":
        values = jnp.asarray(FP4)[groups] * fp4_scale(w.scales)[..., None]
    else:
        values = groups.astype(w.scales.dtype) * w.scales[..., None] + w.biases[..., None]
    return values.reshape(w.shape).astype(wanted)


@dequantize.give_types
def types(w: Any, *, dtype: Any) -> jax.ShapeDtypeStruct:
    """Of the dtype asked for, or of the one that the elements have. Raises TypeError where it is not floating."""
    check_quantized("dequantize", w)
    try:
        wanted = jnp.dtype(dtype or (jnp.bfloat16 if w.mode == "mxfp4" else w.scales.dtype))
    except TypeError:
        raise TypeError(f"dequantize: dtype is {dtype!r}, which is no dtype") from None
    if not jnp.issubdtype(wanted, jnp.floating):
        raise TypeError(f"dequantize: dtype is {wanted.name}; it must be one of floating-point numbers")
    return jax.ShapeDtypeStruct(w.shape, wanted)


def check_quantized(name: str, w: Any) -> None:
    """Raise TypeError or ValueError for what is not a whole `Quantized` array."""
    if not isinstance(w, Quantized):
        raise TypeError(f"{name}: w is {w.dtype.name}{list(w.shape)}; it takes a Quantized array, which quantize gives")
    check_format(name, w.bits, w.group_size, w.mode)
    scales = (*w.shape[:-1], w.shape[-1] // w.group_size)
    given = {"scales": w.scales, "biases": w.biases} if w.mode == "affine" else {"scales": w.scales}
    for what, x in given.items():
        if x is None or x.shape != scales:
            got = "None" if x is None else f"{list(x.shape)}"
            said = f"packed{list(w.packed.shape)} of {w.bits} bits in groups of {w.group_size}"
            raise ValueError(f"{name}: {what} of w are {got}; {said} goes with {list(scales)}")
    kind = jnp.floating if w.mode == "affine" else jnp.uint8
    alike = {x.dtype for x in given.values()} == {w.scales.dtype}
    if w.packed.dtype != jnp.uint32 or not alike or not jnp.issubdtype(w.scales.dtype, kind):
        dtypes = ", ".join(f"{what} {x.dtype.name}" for what, x in {"packed": w.packed, **given}.items())
        wanted = "scales and biases of one floating-point dtype" if w.mode == "affine" else "uint8 scales"
        raise TypeError(f"{name}: w has {dtypes}; {w.mode} takes packed uint32 and {wanted}")


def random_quantized(
    shape: tuple[int, ...], bits: int = 4, group_size: int = 64, mode: str = "affine", seed: int = 0
) -> Quantized:
    """A `Quantized` array of random bits in NumPy, with float32 scales or exponents around 127."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 2**32, (*shape[:-1], shape[-1] * bits // 32), dtype=np.uint32)
    grouped = (*shape[:-1], shape[-1] // group_size)
    if mode == "mxfp4":
        return Quantized(packed, rng.integers(120, 134, grouped).astype(np.uint8), None, bits, group_size, mode)
    return Quantized(packed, normal(grouped, seed), normal(grouped, seed + 1, 2.0), bits, group_size, mode)


@dequantize.give_samples
def samples() -> Iterator[Sample]:
    for bits in BITS:
        for group_size in GROUP_SIZES[: 1 + bits % 3]:
            name = f"{bits} bits of {group_size}"
            yield Sample(name, (random_quantized((2, 128), bits, group_size, seed=bits),))
    yield Sample("mxfp4", (random_quantized((2, 64), 4, 32, "mxfp4"),))
    yield Sample("mxfp4 in float32", (random_quantized((1, 32), 4, 32, "mxfp4"),), {"dtype": "float32"})
    yield Sample("in float16", (random_quantized((1, 32), 3, 32),), {"dtype": "float16"})
    yield Sample("one row", (random_quantized((64,), 6),))
    yield Sample("two leading axes", (random_quantized((2, 1, 32), 5, 32),))
    yield Sample("no rows", (random_quantized((0, 64)),))
    yield Sample("no columns", (random_quantized((2, 0)),))


@dequantize.law
def the_stream_read_as_a_whole_number_agrees(op: Any, w: Any, **static: Any) -> None:
    if w.packed.size:
        wanted, unit = decoded(w), float(jnp.finfo(op(w, **static).dtype).eps)
        largest = np.abs(wanted).max() + (np.abs(w.biases).max() if w.biases is not None else 0)
        np.testing.assert_allclose(np.asarray(op(w, **static), float), wanted, atol=2 * unit * float(largest))


@dequantize.law
def one_worked_row(op: Any, *args: Any, **static: Any) -> None:
    """Codes 0 to 3 in the first byte, then zeros."""
    packed = np.array([[0b11100100, 0]], np.uint32)
    w = Quantized(packed, np.array([[2.0]], np.float32), np.array([[-1.0]], np.float32), 2, 32)
    np.testing.assert_array_equal(op(w)[0, :5], [-1, 1, 3, 5, -1])


dequantize.give_cost(lambda w, **static: (2 * int(np.prod(w.shape)), _bytes(w)))


def _bytes(w: Quantized) -> int:
    leaves = sum(x.size * x.dtype.itemsize for x in (w.packed, w.scales, w.biases) if x is not None)
    return leaves + int(np.prod(w.shape)) * (2 if w.mode == "mxfp4" else w.scales.dtype.itemsize)


def _with_codes(w: Quantized, change: Any) -> Any:
    from m2ml.ops.quantize import pack

    return dataclasses.replace(w, packed=pack(change(unpack(w.packed, w.bits)).astype(jnp.uint32), w.bits))


@dequantize.fault
def biases_ignored(w: Quantized, /, **static: Any) -> Any:
    zero = None if w.biases is None else jnp.zeros_like(w.biases)
    return dequantize.definition(dataclasses.replace(w, biases=zero), **static)


@dequantize.fault
def codes_are_signed(w: Quantized, /, **static: Any) -> Any:
    half = 2 ** (w.bits - 1)
    moved = w if w.biases is None else dataclasses.replace(w, biases=w.biases - half * w.scales)
    return dequantize.definition(moved, **static)


@dequantize.fault
def first_scale_for_all(w: Quantized, /, **static: Any) -> Any:
    scales = jnp.broadcast_to(w.scales[..., :1], w.scales.shape)
    return dequantize.definition(dataclasses.replace(w, scales=scales), **static)


@dequantize.fault
def words_read_from_the_top(w: Quantized, /, **static: Any) -> Any:
    return dequantize.definition(
        dataclasses.replace(
            w,
            packed=jax.lax.bitcast_convert_type(
                jax.lax.bitcast_convert_type(w.packed, jnp.uint8)[..., ::-1], jnp.uint32
            ),
        ),
        **static,
    )


@dequantize.fault
def codes_across_words_cut_off(w: Quantized, /, **static: Any) -> Any:
    """The part of a code that is in the next word is left out."""
    low = np.minimum(32 - np.arange(32) * w.bits % 32, w.bits)
    kept = np.resize((2**low - 1).astype(np.uint32), w.shape[-1])
    return dequantize.definition(_with_codes(w, lambda codes: codes & kept), **static)


@dequantize.fault
def neighbours_swapped(w: Quantized, /, **static: Any) -> Any:
    def swapped(codes: Array) -> Array:
        return codes.reshape(*codes.shape[:-1], -1, 2)[..., ::-1].reshape(codes.shape)

    return dequantize.definition(_with_codes(w, swapped), **static)


@dequantize.fault
def e2m1_as_whole_numbers(w: Quantized, /, **static: Any) -> Any:
    right = dequantize.definition(w, **static)
    if w.mode == "affine":
        return right
    codes = unpack(w.packed, 4).reshape(*w.scales.shape, 32).astype(jnp.float32)
    return (codes * fp4_scale(w.scales)[..., None]).reshape(w.shape).astype(right.dtype)
