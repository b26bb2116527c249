"""Integers: division and shifts with XLA's results where C++ and MLX leave them open, and bit counting."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import (
    SIGNED,
    UNSIGNED,
    as_signed,
    as_unsigned,
    bits,
    constant_like,
    highest,
    is_bool,
    is_float,
    is_integer,
    is_unsigned,
    rules,
    unsupported,
)


def _magnitude(x: mx.array) -> mx.array:
    """The absolute value as unsigned integers, in which that of the least integer exists."""
    return x if is_unsigned(x) else mx.abs(x).astype(UNSIGNED[x.dtype.size])


@rules.define("div")
def div(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    """Division; of integers truncating towards zero, where ``x / 0`` has all bits set."""
    if not is_integer(x):
        return mx.divide(x, y)
    divisor = _magnitude(y)
    quotient = mx.floor_divide(_magnitude(x), mx.maximum(divisor, constant_like(divisor, 1)))
    if not is_unsigned(x):
        quotient = quotient.astype(x.dtype)
        quotient = mx.where(mx.bitwise_xor(x, y) < 0, -quotient, quotient)
    return mx.where(y == 0, constant_like(x, highest(x.dtype) if is_unsigned(x) else -1), quotient)


@rules.define("rem")
def rem(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    """The remainder with the sign of ``x``; of integers, ``x`` itself where ``y`` is 0."""
    if is_float(x):
        left = mx.remainder(mx.abs(x), mx.abs(y))
        return mx.where(x < 0, -left, mx.where(mx.logical_and(x == 0, left == 0), x, left))
    divisor = _magnitude(y)
    left = mx.remainder(_magnitude(x), mx.maximum(divisor, constant_like(divisor, 1)))
    if not is_unsigned(x):
        left = left.astype(x.dtype)
        left = mx.where(x < 0, -left, left)
    return mx.where(y == 0, x, left)


@rules.define("and")
def and_(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return mx.bitwise_and(x, y)


@rules.define("or")
def or_(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return mx.bitwise_or(x, y)


@rules.define("xor")
def xor(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return mx.bitwise_xor(x, y)


@rules.define("not")
def not_(_: Equation, x: mx.array) -> mx.array:
    return mx.logical_not(x) if is_bool(x) else mx.bitwise_invert(x)


@rules.define("shift_left")
def shift_left(_: Equation, x: mx.array, by: mx.array) -> mx.array:
    return _shift(mx.left_shift, x, by)


@rules.define("shift_right_logical")
def shift_right_logical(_: Equation, x: mx.array, by: mx.array) -> mx.array:
    shifted = _shift(mx.right_shift, as_unsigned(x), as_unsigned(by))
    return shifted if is_unsigned(x) else shifted.view(x.dtype)


@rules.define("shift_right_arithmetic")
def shift_right_arithmetic(_: Equation, x: mx.array, by: mx.array) -> mx.array:
    by = as_unsigned(by)
    by = mx.minimum(by, constant_like(by, bits(x.dtype) - 1))
    shifted = mx.right_shift(as_signed(x), by.astype(as_signed(x).dtype))
    return shifted.view(x.dtype) if is_unsigned(x) else shifted


def _shift(shift: Callable[[mx.array, mx.array], mx.array], x: mx.array, by: mx.array) -> mx.array:
    """A shift by the width or more gives 0; MLX takes the amount modulo the width or leaves it open."""
    amount = as_unsigned(by)
    inside = amount < constant_like(amount, bits(x.dtype))
    return mx.where(inside, shift(x, by), constant_like(x, 0))


@rules.define("population_count")
def population_count(_: Equation, x: mx.array) -> mx.array:
    return count_bits(as_unsigned(x)).astype(x.dtype)


def count_bits(x: mx.array) -> mx.array:
    """The number of ones in each unsigned integer: sums of neighbouring fields, widths 1, 2, 4, ..."""
    width = bits(x.dtype)
    ones = highest(x.dtype)
    field = 1
    while field < width:
        mask = constant_like(x, ones // ((1 << field) + 1))
        x = mx.bitwise_and(x, mask) + mx.bitwise_and(mx.right_shift(x, constant_like(x, field)), mask)
        field *= 2
    return x


@rules.define("clz")
def clz(_: Equation, x: mx.array) -> mx.array:
    filled = as_unsigned(x)
    step = 1
    while step < bits(x.dtype):
        filled = mx.bitwise_or(filled, mx.right_shift(filled, constant_like(filled, step)))
        step *= 2
    return (constant_like(filled, bits(x.dtype)) - count_bits(filled)).astype(x.dtype)


@rules.define("mulhi")
def mulhi(equation: Equation, x: mx.array, y: mx.array) -> mx.array:
    """The upper half of the product."""
    if bits(x.dtype) == 64:
        raise unsupported(equation, "the product of 64-bit integers needs 128 bits")
    double = (UNSIGNED if is_unsigned(x) else SIGNED)[2 * x.dtype.size]
    product = x.astype(double) * y.astype(double)
    return mx.right_shift(product, constant_like(product, bits(x.dtype))).astype(x.dtype)
