"""Quantised weights: 2 to 8 bits each, in groups that share a scale, in MLX's own layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_one_of, wide
from m2ml.ops.inputs import normal

Array = jax.Array

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
MODES = ("affine", "mxfp4")

#: What the 16 codes of E2M1, the elements of mxfp4, stand for.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

#: Smallest scale of an affine group, MLX's.
SMALLEST_SCALE = 1e-7


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("packed", "scales", "biases"),
    meta_fields=("bits", "group_size", "mode"),
)
@dataclass(frozen=True)
class Quantized:
    """An array ``[*b, n]`` of codes and what scales them: a pytree; `mx.quantized_matmul` takes its arrays as they are.

    ``packed`` is uint32 ``[*b, n * bits / 32]``: each row is one stream of bits, code after code, lowest bit first.
    ``"affine"``: element = ``scale * code + bias``, with ``scales`` and ``biases`` ``[*b, n / group_size]``.
    ``"mxfp4"`` (OCP Microscaling Formats 1.0): element = ``2**(scale - 127)`` times the E2M1 number of the code, with
    uint8 ``scales`` for groups of 32, and no ``biases``.
    """

    packed: Any
    scales: Any
    biases: Any = None
    bits: int = 4
    group_size: int = 64
    mode: str = "affine"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that is quantised."""
        return (*self.packed.shape[:-1], self.packed.shape[-1] * 32 // self.bits)


def check_format(name: str, bits: int, group_size: int, mode: str) -> None:
    """Raise ValueError for a format there is not."""
    require_one_of(name, "mode", mode, MODES)
    require_one_of(name, "bits", bits, BITS if mode == "affine" else (4,))
    require_one_of(name, "group_size", group_size, GROUP_SIZES if mode == "affine" else (32,))


@op(shapes="w[*b n] -> [*b p], [*b q]")
def quantize(w: Array, /, *, bits: int = 4, group_size: int | None = None, mode: str = "affine") -> Any:
    """``w`` ``[*b, n]`` as a `Quantized` array: what `mx.quantize` gives, bit for bit in ``"affine"`` mode.

    ``"affine"`` takes 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 (unless given) or 128; a group's scale is its range
    over ``2**bits - 1``, then changed so that 0 has a code of its own, and has the sign that puts code 0 at the end of
    the range that is further from 0. Scales and biases have ``w``'s dtype and are rounded to it after the codes are
    found in float32. ``"mxfp4"`` takes 4 bits and groups of 32: the scale is the smallest power of two, from 2**-127,
    that brings all of them to at most 6, of a group of zeros 1; elements round to nearest, ties to even codes, and keep
    their sign (MLX's CPU breaks ties towards 0 and has one zero only). There is no gradient: codes are steps.
    """
    require_floating("quantize", w=w)
    group_size = (64 if mode == "affine" else 32) if group_size is None else group_size
    check_format("quantize", bits, group_size, mode)
    said = f"n is {w.shape[-1]} in w{list(w.shape)}; it must be a multiple of the group size, {group_size}"
    require("quantize", w.shape[-1] % group_size == 0, said)
    wide_w = jax.lax.stop_gradient(wide(w))
    groups = wide_w.reshape(*w.shape[:-1], w.shape[-1] // group_size, group_size)
    if mode == "mxfp4":
        codes, scales = _fp4_codes(groups)
        return Quantized(pack(codes.reshape(w.shape), 4), scales, None, 4, 32, mode)
    codes, scales, biases = _affine_codes(groups, bits)
    packed = pack(codes.reshape(w.shape), bits)
    return Quantized(packed, scales.astype(w.dtype), biases.astype(w.dtype), bits, group_size, mode)


def _affine_codes(groups: Array, bits: int) -> tuple[Array, Array, Array]:
    """Codes ``[..., groups, size]``, scales and biases ``[..., groups]`` of groups of numbers."""
    low, high = jnp.min(groups, axis=-1), jnp.max(groups, axis=-1)
    scale = jnp.maximum(_quotient(high - low, 2**bits - 1), SMALLEST_SCALE)
    from_low = jnp.abs(low) > jnp.abs(high)
    edge, scale = jnp.where(from_low, low, high), jnp.where(from_low, scale, -scale)
    steps = jnp.round(edge / scale)
    scale = jnp.where(steps == 0, scale, edge / jnp.where(steps == 0, 1, steps))
    bias = jnp.where(steps == 0, 0, edge)
    codes = jnp.round(_quotient(groups - bias[..., None], scale[..., None]))
    return jnp.clip(codes, 0, 2**bits - 1).astype(jnp.uint32), scale, bias


def _quotient(x: Array, y: Any) -> Array:
    """``x / y`` rounded once: XLA multiplies by the reciprocal of a divisor that is constant or broadcast."""
    return x / jnp.where(jnp.isnan(x), 1, y)


def _fp4_codes(groups: Array) -> tuple[Array, Array]:
    """Codes ``[..., groups, 32]`` and exponents ``[..., groups]`` of groups of numbers."""
    largest = jnp.max(jnp.abs(groups), axis=-1).astype(jnp.float32)
    # The exponent field, one more where the mantissa is above 1.5 of 1.5 * 2**2 = 6, less the 2.
    exponent = ((jax.lax.bitcast_convert_type(largest, jnp.uint32) + 0x3FFFFF) >> 23).astype(jnp.int32) - 2
    exponent = jnp.where(largest == 0, 127, jnp.clip(exponent, 0, 254))
    scaled = groups / fp4_scale(exponent)[..., None]
    size, codes = jnp.abs(scaled), jnp.zeros(groups.shape, jnp.uint32)
    for code in range(1, 8):  # halfway up is a code's own where it is even
        halfway = float(FP4[code] + FP4[code - 1]) / 2
        codes = codes + (size >= halfway if code % 2 == 0 else size > halfway)
    return codes + 8 * jnp.signbit(scaled).astype(jnp.uint32), exponent.astype(jnp.uint8)


def fp4_scale(exponent: Array) -> Array:
    """``2**(exponent - 127)`` in float32, from the bits of the number; 0 is the subnormal 2**-127."""
    bits = jnp.where(exponent == 0, 1 << 22, exponent.astype(jnp.uint32) << 23).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def pack(codes: Array, bits: int) -> Array:
    """Codes ``[*b, n]`` below ``2**bits`` as a stream of bits, uint32 ``[*b, n * bits / 32]``."""
    each = (codes[..., None] >> np.arange(bits, dtype=np.uint32)) & 1
    words = each.reshape(*codes.shape[:-1], codes.shape[-1] * bits // 32, 32)
    return jnp.sum(words << np.arange(32, dtype=np.uint32), axis=-1, dtype=jnp.uint32)


def unpack(packed: Array, bits: int) -> Array:
    """The codes ``[*b, n]`` of a stream of bits ``[*b, n * bits / 32]``."""
    words = packed.reshape(*packed.shape[:-1], packed.shape[-1] // bits, bits)  # each holds 32 codes
    word, shift = np.divmod(np.arange(32) * bits, 32)
    codes = words[..., word] >> shift.astype(np.uint32)
    if 32 % bits:
        spills = shift + bits > 32
        above = words[..., np.minimum(word + 1, bits - 1)] << np.where(spills, 32 - shift, 0).astype(np.uint32)
        codes = codes | jnp.where(spills, above, 0)
    codes = codes & np.uint32(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * 32 // bits)


def decoded(w: Quantized) -> np.ndarray[Any, Any]:
    """The elements in float64, read from the stream as whole numbers of Python: what the laws hold ops against."""
    packed = np.asarray(w.packed, np.uint32)
    rows = packed.reshape(-1, packed.shape[-1])
    streams = [int.from_bytes(row.astype("<u4").tobytes(), "little") for row in rows]
    codes = [[stream >> i * w.bits & 2**w.bits - 1 for i in range(w.shape[-1])] for stream in streams]
    grouped = np.array(codes, np.int64).reshape(*packed.shape[:-1], -1, w.group_size)
    scales = np.asarray(w.scales).astype(float)[..., None]
    if w.mode == "mxfp4":
        values = FP4.astype(float)[grouped] * 2.0 ** (scales - 127)
    else:
        values = grouped * scales + np.asarray(w.biases).astype(float)[..., None]
    return np.asarray(values.reshape(w.shape))


@quantize.give_samples
def samples() -> Iterator[Sample]:
    for bits in BITS:
        size = GROUP_SIZES[bits % 3]
        yield Sample(f"{bits} bits of {size}", (normal((2, 2 * size), bits),), {"bits": bits, "group_size": size})
    yield Sample("8 bits of 32", (normal((1, 96), 1),), {"bits": 8, "group_size": 32})
    yield Sample("one row", (normal((64,), 2),))
    yield Sample("two leading axes", (normal((2, 1, 64), 3),), {"bits": 5, "group_size": 32})
    yield Sample("no rows", (normal((0, 64)),))
    yield Sample("no columns", (normal((2, 0)),))
    ends = np.stack([np.linspace(0, 3, 32), np.linspace(-3, 0, 32), np.linspace(2, 3, 32), np.linspace(-1, 2, 32)])
    yield Sample("one-sided", (ends.astype(np.float32),), {"bits": 3, "group_size": 32})
    flat = np.stack([np.zeros(32), np.full(32, 2.5), np.full(32, -1e-3), np.eye(32)[3]]).astype(np.float32)
    yield Sample("constant", (flat,), {"group_size": 32})
    yield Sample("large", (normal((2, 32), 4, 1e6),), {"bits": 2, "group_size": 32})
    yield Sample("small", (normal((2, 32), 5, 1e-6),), {"bits": 6, "group_size": 32})
    yield Sample("mxfp4", (normal((2, 64), 6),), {"mode": "mxfp4"})
    halfway = np.tile(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.float32), 4)
    yield Sample("mxfp4, ties", (np.stack([halfway, -halfway, flat[3]]),), {"mode": "mxfp4"})
    yield Sample(
        "mxfp4, scales",
        (normal((5, 32), 7) * 10.0 ** np.arange(-4, 6, 2, dtype=np.float32)[:, None],),
        {"mode": "mxfp4"},
    )


@quantize.law
def no_element_is_further_than_a_step(op: Any, w: Any, **static: Any) -> None:
    """A step of an affine group is its scale; of E2M1 it is at most a sixth of the largest element's power of two."""
    if w.size:
        found = op(w, **static)
        scales = np.asarray(found.scales, float)
        steps = np.abs(scales) if found.mode == "affine" else 2.0 ** (scales - 127)
        far = np.abs(decoded(found) - w).reshape(*scales.shape, found.group_size)
        assert np.all(far <= 1.001 * steps[..., None] + 1e-5 * np.abs(w).max())


@quantize.law
def zero_stays_zero(op: Any, w: Any, **static: Any) -> None:
    if w.size:
        w = w.copy()
        w[..., ::5] = 0
        found = decoded(op(w, **static))
        assert np.all(np.abs(found[..., ::5]) <= 1e-5 * np.abs(w).max())


@quantize.law
def codes_of_a_ramp_count_up(op: Any, *args: Any, **static: Any) -> None:
    """The whole numbers from 0 down to ``1 - 2**bits`` have the codes ``2**bits - 1`` down to 0, and come back."""
    for bits in (2, 3, 5):
        ramp = -np.arange(32, dtype=np.float32) % 2**bits - (2**bits - 1)
        found = op(ramp, bits=bits, group_size=32)
        np.testing.assert_array_equal(decoded(found), ramp)
        assert float(found.biases[0]) == 1 - 2**bits


@quantize.law
def fp4_numbers_come_back(op: Any, *args: Any, **static: Any) -> None:
    numbers = np.tile(FP4, 2) * np.float32(0.25)
    found = op(np.stack([numbers, numbers * 64]), mode="mxfp4")
    np.testing.assert_array_equal(np.asarray(found.scales)[:, 0], [125, 131])
    np.testing.assert_array_equal(decoded(found), [numbers, numbers * 64])


@quantize.law
def halfway_between_two_fp4_numbers_is_the_even_one(op: Any, *args: Any, **static: Any) -> None:
    halfway = np.tile(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.float32), 4)
    np.testing.assert_array_equal(decoded(op(halfway, mode="mxfp4")), np.tile([0, 1, 1, 2, 2, 4, 4, 6], 4))


quantize.give_cost(lambda w, bits=4, **static: (8 * w.size, w.size * w.dtype.itemsize + w.size * bits // 8))


def _changed(fault: Any, *, affine: bool) -> Any:
    """The right result with other codes or scales where the mode is the fault's."""

    @functools.wraps(fault)
    def wrong(w: Array, /, *, bits: int, group_size: int | None, mode: str) -> Any:
        right = quantize.definition(w, bits=bits, group_size=group_size, mode=mode)
        return fault(right, wide(w)) if affine == (mode == "affine") else right

    return quantize.fault(wrong)


_affine = functools.partial(_changed, affine=True)
_fp4 = functools.partial(_changed, affine=False)


def _recoded(right: Quantized, codes: Array) -> Quantized:
    return Quantized(pack(codes, right.bits), right.scales, right.biases, right.bits, right.group_size, right.mode)


def _grouped(right: Quantized, w: Array) -> Array:
    return w.reshape(*w.shape[:-1], -1, right.group_size) if w.size else w[..., None]


@_affine
def rounds_down(right: Quantized, w: Array) -> Quantized:
    if not w.size:
        return right
    steps = (_grouped(right, w) - right.biases[..., None]) / right.scales[..., None]
    return _recoded(right, jnp.clip(jnp.floor(steps), 0, 2**right.bits - 1).astype(jnp.uint32).reshape(w.shape))


@_affine
def codes_from_the_other_end(right: Quantized, w: Array) -> Quantized:
    return _recoded(right, 2**right.bits - 1 - unpack(right.packed, right.bits))


@_affine
def zero_has_no_code(right: Quantized, w: Array) -> Quantized:
    """The smallest element is the bias, always, and the scale not changed."""
    if not w.size:
        return right
    groups = _grouped(right, w)
    low, high = jnp.min(groups, -1), jnp.max(groups, -1)
    scale = jnp.maximum((high - low) / (2**right.bits - 1), SMALLEST_SCALE)
    codes = jnp.round((groups - low[..., None]) / scale[..., None]).astype(jnp.uint32).reshape(w.shape)
    new = _recoded(right, codes)
    return Quantized(new.packed, scale, low, right.bits, right.group_size)


@_affine
def highest_bit_first(right: Quantized, w: Array) -> Quantized:
    codes = unpack(right.packed, right.bits)
    turned = sum((codes >> i & 1) << (right.bits - 1 - i) for i in range(right.bits))
    return _recoded(right, jnp.asarray(turned, jnp.uint32))


@_affine
def last_codes_of_each_word_swapped(right: Quantized, w: Array) -> Quantized:
    codes = unpack(right.packed, right.bits)
    return _recoded(right, codes.reshape(*codes.shape[:-1], -1, 32)[..., ::-1].reshape(codes.shape))


@_affine
def half_precision_scales(right: Quantized, w: Array) -> Quantized:
    scales = right.scales.astype(jnp.bfloat16).astype(right.scales.dtype)
    return Quantized(right.packed, scales, right.biases, right.bits, right.group_size)


@_fp4
def ties_away_from_zero(right: Quantized, w: Array) -> Quantized:
    scaled = jnp.abs(_grouped(right, w)) / fp4_scale(right.scales)[..., None]
    halves = [float(FP4[i] + FP4[i - 1]) / 2 for i in range(1, 8)]
    codes = jnp.sum(scaled[..., None] >= jnp.array(halves), -1, dtype=jnp.uint32).reshape(w.shape)
    return _recoded(right, codes + 8 * jnp.signbit(w).astype(jnp.uint32))


@_fp4
def sign_lost(right: Quantized, w: Array) -> Quantized:
    return _recoded(right, unpack(right.packed, 4) & 7)


@_fp4
def scale_to_the_nearest_power(right: Quantized, w: Array) -> Quantized:
    largest = jnp.max(jnp.abs(_grouped(right, w)), -1)
    scales = jnp.where(largest > 0, jnp.round(jnp.log2(jnp.where(largest > 0, largest, 6) / 6)) + 127, 127)
    return Quantized(right.packed, scales.astype(jnp.uint8), None, 4, 32, "mxfp4")
