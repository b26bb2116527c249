"""Where a result is a number and what an engine works out on the way to it may overflow, or vanish."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from m2ml.equivalence.rounding import real_dtype, terms, tiny
from m2ml.interpreter import Equation
from m2ml.precision import narrow, widen

Array = np.ndarray[Any, Any]
Rule = Callable[..., Sequence[Array]]

#: Sums whose rule, given the sizes of the terms, gives the sum of those.
SUMS_OF_SIZES = frozenset(
    """conv_general_dilated cumsum dot_general fft ragged_dot ragged_dot_general reduce_sum reduce_window_sum
    scatter_add""".split()
)

PRODUCTS = frozenset("cumprod reduce_prod scatter_mul".split())


def may_overflow(equation: Equation, inputs: Sequence[Array], output: Array, rule: Rule) -> Array | None:
    """Where a sum or product of finite terms may overflow in some order of them, or a product vanish; None if nowhere.

    ``inputs`` and ``output`` are the reference's float64 values; ``rule(*inputs)`` evaluates the equation. Partial sums
    are at most the sum of the sizes of the terms, and partial products lie between those of the factors above 1 and
    those below. Terms of one sign have one sum, whatever their order.
    """
    floats = [x for x in inputs if x.dtype.kind in "fc"]
    if not floats or equation.name not in SUMS_OF_SIZES | PRODUCTS:
        return None
    largest = float(ml_dtypes.finfo(real_dtype(equation.dtype)).max)
    with np.errstate(all="ignore"):
        if equation.name in PRODUCTS:
            return _product_overflows(inputs, output, rule, largest, tiny(equation.dtype))
        if math.prod(map(_largest, floats)) * _count(equation) < largest:
            return None
        total = _fft_total(equation, inputs[0], output) if equation.name == "fft" else rule(*map(_sizes, inputs))[0]
        return np.asarray((total > largest) & np.isfinite(output) & (total > 2 * np.abs(output)))


def _product_overflows(
    inputs: Sequence[Array], output: Array, rule: Rule, largest: float, least: float
) -> Array | None:
    sizes = list(map(_sizes, inputs))
    above = rule(*(np.maximum(x, 1) if x.dtype.kind == "f" else x for x in sizes))[0]
    below = rule(*(np.where(x == 0, 1, np.minimum(x, 1)) if x.dtype.kind == "f" else x for x in sizes))[0]
    size = np.abs(output)
    return np.asarray(((above > largest) & (size < largest)) | ((below < least) & (size > least)))


def _sizes(x: Array) -> Array:
    return np.abs(x) if x.dtype.kind in "fc" else x


def _largest(x: Array) -> float:
    """The size of the largest finite number."""
    if x.dtype.kind == "f" and x.size:
        ends = float(x.max()), float(x.min())
        if all(map(math.isfinite, ends)):
            return max(map(abs, ends))
    sizes = np.abs(x)
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))


def _count(equation: Equation) -> int:
    return math.prod(equation.params["fft_lengths"]) if equation.name == "fft" else terms(equation)


def _fft_total(equation: Equation, x: Array, output: Array) -> Array:
    """The sum of sizes of each transform; where half of the terms are given, twice what those add up to."""
    axes = tuple(range(-len(equation.params["fft_lengths"]), 0))
    given = math.prod(x.shape[axis] for axis in axes)
    total = np.sum(np.abs(x), axes, keepdims=True) * (_count(equation) / max(given, 1))
    return np.broadcast_to(total, output.shape)


def inverse_of_power(equation: Equation, inputs: Sequence[Array], output: Array) -> Array | None:
    """``output`` of a negative integer power as one over the positive power, where that overflows or vanishes.

    So engines work it out: the square of -300 overflows in float16, and one over it is 0, not 1.1e-5. What they make of
    complex infinities is NaN to one and 0 to another. None for other primitives.
    """
    if equation.name != "integer_pow" or equation.params["y"] >= 0 or inputs[0].dtype.kind not in "fc":
        return None
    x = inputs[0]
    with np.errstate(all="ignore"):
        least = tiny(equation.dtype)
        size = widen(narrow(np.abs(x) ** -equation.params["y"], real_dtype(equation.dtype)))
        normal = np.isnan(x) | (np.isfinite(2 * size) & (size >= least))
        if x.dtype.kind == "c":
            return np.asarray(np.where(normal, output, np.where(np.isnan(output), 0.0, np.nan)))
        if equation.dtype != np.float16:  # in which no engine takes subnormal numbers for zero
            size = np.where(size < least, 0.0, size)
        return np.asarray(np.where(normal, output, np.copysign(1 / size, output)))


def product_with_inverse(equation: Equation, inputs: Sequence[Array], output: Array) -> Array | None:
    """``output`` of a division as the product with one over the divisor, where that overflows or is subnormal.

    XLA's CPU divides so by what is the same for many numbers: 3e38 / 3e38 is 0 then. None for other primitives.
    """
    if equation.name != "div" or inputs[1].dtype.kind != "f" or equation.dtype == np.float16:
        return None
    x, y = inputs
    with np.errstate(all="ignore"):
        if _largest(y) <= 0.5 / tiny(equation.dtype) and np.count_nonzero(np.abs(y) < tiny(equation.dtype)) == 0:
            return None
        inverse = widen(narrow(1 / y, equation.dtype))
        vanishes = (np.abs(inverse) < tiny(equation.dtype)) & np.isfinite(y)
        off = vanishes | (np.isinf(inverse) & (y != 0))
        return np.asarray(np.where(off, x * np.where(vanishes, np.copysign(0.0, y), inverse), output))
