"""Integer arithmetic and bits, with XLA's answers where a processor has none.

Division by zero gives -1 (all bits set), the remainder by zero gives the dividend, and a shift by the width
or more gives what shifting one bit at a time would.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, is_unsigned, rules


def width(dtype: Any) -> int:
    return int(ml_dtypes.iinfo(dtype).bits)


def unsigned(x: Array) -> Array:
    """The same bits as unsigned integers."""
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _divisible(x: Array, y: Array) -> Array:
    """``y`` where the processor can divide ``x`` by it, and 1 elsewhere."""
    overflow = (y == 0) if is_unsigned(x.dtype) else (y == 0) | (y == -1)
    return np.where(overflow, y.dtype.type(1), y)


def int_div(x: Array, y: Array) -> Array:
    """The quotient rounded towards zero."""
    divisor = _divisible(x, y)
    quotient = (x - np.fmod(x, divisor)) // divisor
    if not is_unsigned(x.dtype):
        quotient = np.where(y == -1, -x, quotient)
    return np.where(y == 0, ~np.zeros_like(x), quotient)


def int_rem(x: Array, y: Array) -> Array:
    """The remainder with the sign of the dividend."""
    return np.where(y == 0, x, np.fmod(x, _divisible(x, y)))


@rules.define("mulhi")
def mulhi(equation: Equation, x: Array, y: Array) -> Array:
    """The high half of the product of two integers."""
    bits = width(x.dtype)
    product = x.astype(object) * y.astype(object)
    return np.asarray(product >> bits, dtype=object).astype(x.dtype)


@rules.define("and")
def and_(equation: Equation, x: Array, y: Array) -> Array:
    return x & y


@rules.define("or")
def or_(equation: Equation, x: Array, y: Array) -> Array:
    return x | y


@rules.define("xor")
def xor(equation: Equation, x: Array, y: Array) -> Array:
    return x ^ y


@rules.define("not")
def not_(equation: Equation, x: Array) -> Array:
    return ~x


def _within(x: Array, y: Array) -> tuple[Array, Array]:
    """Whether the shift count lies below the width, and a count that does."""
    inside = unsigned(y) < width(x.dtype)
    return inside, np.where(inside, y, y.dtype.type(0))


@rules.define("shift_left")
def shift_left(equation: Equation, x: Array, y: Array) -> Array:
    inside, count = _within(x, y)
    return np.where(inside, x << count, x.dtype.type(0))


@rules.define("shift_right_logical")
def shift_right_logical(equation: Equation, x: Array, y: Array) -> Array:
    inside, count = _within(x, y)
    shifted = unsigned(x) >> unsigned(count)
    return np.where(inside, shifted, shifted.dtype.type(0)).astype(x.dtype)


@rules.define("shift_right_arithmetic")
def shift_right_arithmetic(equation: Equation, x: Array, y: Array) -> Array:
    """The top bit is repeated, that of an unsigned number too."""
    inside, count = _within(x, y)
    signed = x.view(np.dtype(f"i{x.dtype.itemsize}"))
    last = signed.dtype.type(width(x.dtype) - 1)
    return np.asarray((signed >> np.where(inside, count, count.dtype.type(last)).astype(signed.dtype)).astype(x.dtype))


def _bits(x: Array) -> Array:
    """The bits of each element, most significant first, along a new last axis."""
    big_endian = unsigned(x).astype(f">u{x.dtype.itemsize}")[..., None]
    return np.unpackbits(big_endian.view(np.uint8), axis=-1)[..., -width(x.dtype) :]


@rules.define("population_count")
def population_count(equation: Equation, x: Array) -> Array:
    return np.asarray(_bits(x).sum(axis=-1, dtype=np.uint8))


@rules.define("clz")
def clz(equation: Equation, x: Array) -> Array:
    """How many zeros precede the first one."""
    bits = _bits(x)
    return np.where(bits.any(axis=-1), bits.argmax(axis=-1), width(x.dtype))
