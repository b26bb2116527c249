"""Conversions between dtypes, and what looks at the bits of a number: bitcasts, rounding, total order, neighbours."""

from __future__ import annotations

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import (
    FLOATS,
    SIGNED,
    UNSIGNED,
    as_signed,
    bits,
    constant,
    constant_like,
    highest,
    is_complex,
    is_float,
    lowest,
    out_dtype,
    rules,
    unsupported,
    wide,
)


@rules.define("convert_element_type")
def convert_element_type(equation: Equation, x: mx.array) -> mx.array:
    return convert(x, out_dtype(equation))


def convert(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """``x`` in ``dtype``: floats to integers round towards zero and saturate, and NaN becomes 0."""
    if x.dtype == dtype:
        return x
    if is_complex(x) and dtype != mx.complex64:
        return convert(mx.real(x), dtype)
    if dtype == mx.bool_:
        return mx.not_equal(x, constant_like(x, 0))
    if is_float(x) and dtype not in FLOATS and dtype != mx.complex64:
        return _float_to_integer(wide(x), dtype)
    return x.astype(dtype)


def _float_to_integer(x: mx.array, dtype: mx.Dtype) -> mx.array:
    least, most = lowest(dtype), highest(dtype)
    if bits(dtype) < 32:
        limited = mx.clip(x, constant_like(x, least), constant_like(x, most))
        return mx.where(mx.isnan(x), constant(0, mx.int32), limited.astype(mx.int32)).astype(dtype)
    # The greatest integer is not a float, the power of two after it is.
    inside = mx.where(x < float(most + 1), x, constant_like(x, 0)).astype(dtype)
    if dtype in UNSIGNED.values():
        inside = mx.where(x > 0, inside, constant(0, dtype))
    else:
        inside = mx.where(x >= float(least), inside, constant(least, dtype))
    inside = mx.where(x >= float(most + 1), constant(most, dtype), inside)
    return mx.where(mx.isnan(x), constant(0, dtype), inside)


@rules.define("bitcast_convert_type")
def bitcast_convert_type(equation: Equation, x: mx.array) -> mx.array:
    target = out_dtype(equation)
    if x.dtype == target:
        return x
    if mx.bool_ in (x.dtype, target) or x.dtype.size == target.size:
        return x.view(target)
    if x.dtype.size < target.size:
        return mx.squeeze(mx.contiguous(x).view(target), -1)
    return mx.expand_dims(x, -1).view(target)


@rules.define("reduce_precision")
def reduce_precision(equation: Equation, x: mx.array) -> mx.array:
    exponent, mantissa = equation.params["exponent_bits"], equation.params["mantissa_bits"]
    narrow = {(5, 10): mx.float16, (8, 7): mx.bfloat16, (8, 23): mx.float32, (11, 52): mx.float64}
    target = narrow.get((exponent, mantissa))
    if target is not None and target == x.dtype:
        return x
    if is_complex(x):
        raise unsupported(equation, "complex numbers have no reduced precision")
    own = {mx.float16: (5, 10), mx.bfloat16: (8, 7), mx.float32: (8, 23), mx.float64: (11, 52)}[x.dtype]
    return _round_bits(x, exponent, mantissa, *own)


def _round_bits(x: mx.array, exponent: int, mantissa: int, own_exponent: int, own_mantissa: int) -> mx.array:
    """Round the significand of ``x`` to nearest even, then flush and overflow to the narrower exponent range."""
    pattern = x.view(UNSIGNED[x.dtype.size])
    magnitude_mask = highest(SIGNED[x.dtype.size])
    sign = mx.bitwise_and(pattern, constant_like(pattern, magnitude_mask + 1))
    drop = own_mantissa - mantissa
    if drop > 0:
        last = mx.bitwise_and(mx.right_shift(pattern, constant_like(pattern, drop)), constant_like(pattern, 1))
        pattern = pattern + last + constant_like(pattern, (1 << (drop - 1)) - 1)
        pattern = mx.bitwise_and(pattern, constant_like(pattern, 2 * magnitude_mask + 1 - ((1 << drop) - 1)))
    if exponent < own_exponent:
        bias, own_bias = (1 << (exponent - 1)) - 1, (1 << (own_exponent - 1)) - 1
        size = mx.bitwise_and(pattern, constant_like(pattern, magnitude_mask))
        exponent_mask = constant_like(pattern, ((1 << own_exponent) - 1) << own_mantissa)
        overflows = size >= constant_like(size, (own_bias + bias + 1) << own_mantissa)
        flushes = size < constant_like(size, (own_bias - bias + 1) << own_mantissa)
        pattern = mx.where(overflows, mx.bitwise_or(sign, exponent_mask), mx.where(flushes, sign, pattern))
    return mx.where(mx.isnan(x), x, pattern.view(x.dtype))


# Order --------------------------------------------------------------------------------------------------


def total_order(x: mx.array) -> mx.array:
    """Integers (or ``x`` itself) ordered as IEEE's total order: -NaN < -inf < ... < -0 < 0 < ... < inf < NaN."""
    if not is_float(x):
        return x
    key = as_signed(x)
    return mx.where(key < 0, mx.bitwise_xor(key, constant_like(key, highest(key.dtype))), key)


@rules.define("eq_to")
def eq_to(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return total_order(x) == total_order(y)


@rules.define("le_to")
def le_to(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return total_order(x) <= total_order(y)


@rules.define("lt_to")
def lt_to(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return total_order(x) < total_order(y)


@rules.define("nextafter")
def nextafter(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    key = as_signed(x)
    one = constant_like(key, 1)
    away = mx.where(mx.equal(x > 0, y > x), key + one, key - one).view(x.dtype)
    smallest = constant_like(key, 1).view(x.dtype)
    from_zero = mx.where(y > 0, smallest, -smallest)
    moved = mx.where(x == 0, from_zero, away)
    return mx.where(mx.logical_or(mx.isnan(x), mx.isnan(y)), x + y, mx.where(x == y, y, moved))
