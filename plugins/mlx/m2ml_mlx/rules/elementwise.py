"""Arithmetic, comparisons, choices and conversions, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import (
    cast,
    constant_like,
    is_bool,
    is_complex,
    is_float,
    out_dtype,
    rules,
    unsupported,
    wide,
)

Unary = Callable[[mx.array], mx.array]
Binary = Callable[[mx.array, mx.array], mx.array]

#: Primitives whose meaning is exactly that of one MLX function.
_SAME_UNARY: dict[str, Unary] = {
    "abs": mx.abs,
    "acos": mx.arccos,
    "acosh": mx.arccosh,
    "asin": mx.arcsin,
    "asinh": mx.arcsinh,
    "atan": mx.arctan,
    "atanh": mx.arctanh,
    "ceil": mx.ceil,
    "cosh": mx.cosh,
    "floor": mx.floor,
    "imag": mx.imag,
    "log": mx.log,
    "log1p": mx.log1p,
    "log2": mx.log2,
    "neg": mx.negative,
    "real": mx.real,
    "rsqrt": mx.rsqrt,
    "sinh": mx.sinh,
    "sqrt": mx.sqrt,
    "square": mx.square,
    "tan": mx.tan,
    "tanh": mx.tanh,
}
_SAME_BINARY: dict[str, Binary] = {
    "add": mx.add,
    "add_any": mx.add,
    "atan2": mx.arctan2,
    "eq": mx.equal,
    "ge": mx.greater_equal,
    "gt": mx.greater,
    "le": mx.less_equal,
    "lt": mx.less,
    "mul": mx.multiply,
    "ne": mx.not_equal,
    "sub": mx.subtract,
}


def _unary(function: Unary) -> Callable[[Equation, mx.array], mx.array]:
    return lambda _, x: function(x)


def _binary(function: Binary) -> Callable[[Equation, mx.array, mx.array], mx.array]:
    return lambda _, x, y: function(x, y)


for _name, _function in _SAME_UNARY.items():
    rules.define(_name)(_unary(_function))
for _name, _function_of_two in _SAME_BINARY.items():
    rules.define(_name)(_binary(_function_of_two))


def multiply_add(x: mx.array, y: mx.array, z: mx.array) -> mx.array:
    """``x * y + z`` in float32, rounded once where the device has float64."""
    if mx.default_device() != mx.cpu:
        return x * y + z
    return (x.astype(mx.float64) * y.astype(mx.float64) + z.astype(mx.float64)).astype(mx.float32)


@rules.define("multiply_add")
def multiply_add_rule(equation: Equation, x: mx.array, y: mx.array, z: mx.array) -> mx.array:
    return multiply_add(x, y, z)


# Arithmetic -------------------------------------------------------------------------------------------


@rules.define("is_finite")
def is_finite(_: Equation, x: mx.array) -> mx.array:
    return mx.abs(x) < math.inf


@rules.define("sign")
def sign(_: Equation, x: mx.array) -> mx.array:
    # MLX gives 0 for NaN and loses the sign of a zero.
    return mx.where(mx.abs(x) > 0, mx.sign(x), x) if is_float(x) else mx.sign(x)


@rules.define("round")
def round_(equation: Equation, x: mx.array) -> mx.array:
    if equation.params["rounding_method"].name == "TO_NEAREST_EVEN":
        return mx.round(x)
    size = mx.abs(x)
    whole = mx.floor(size)
    whole = mx.where(size - whole >= 0.5, whole + 1, whole)
    return mx.where(x < 0, -whole, mx.where(x == 0, x, whole))


@rules.define("max")
def max_(equation: Equation, x: mx.array, y: mx.array) -> mx.array:
    return _extremum(equation, x, y, mx.maximum, mx.add)


@rules.define("min")
def min_(equation: Equation, x: mx.array, y: mx.array) -> mx.array:
    return _extremum(equation, x, y, mx.minimum, lambda x, y: -(-x - y))


def _extremum(equation: Equation, x: mx.array, y: mx.array, pick: Binary, of_zeros: Binary) -> mx.array:
    """``pick(x, y)``; MLX takes the second of two equal operands, so zeros of unlike sign need help.

    A scalar operand, such as the 0 of a relu, goes second and decides alone.
    """
    if is_complex(x):
        return _complex_extremum(x, y, mx.greater if pick is mx.maximum else mx.less)
    if not is_float(x):
        return pick(x, y)
    if x.ndim < y.ndim or y.ndim == 0:
        return pick(y, x) if x.ndim < y.ndim else pick(x, y)
    return mx.where(mx.logical_and(x == 0, y == 0), of_zeros(x, y), pick(x, y))


def _complex_extremum(x: mx.array, y: mx.array, beyond: Binary) -> mx.array:
    """Complex numbers in lexicographic order; a comparison with NaN is false, and the second operand is taken."""
    real_x, real_y = mx.real(x), mx.real(y)
    ties = mx.logical_and(real_x == real_y, beyond(mx.imag(x), mx.imag(y)))
    return mx.where(mx.logical_or(beyond(real_x, real_y), ties), x, y)


@rules.define("clamp")
def clamp(_: Equation, low: mx.array, x: mx.array, high: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(x, low), high)


@rules.define("pow")
def pow_(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    power = mx.power(x, cast(y, x.dtype))
    # MLX takes the logarithm of a complex 0.
    return mx.where(y == 0, constant_like(x, 1), power) if is_complex(x) else power


@rules.define("integer_pow")
def integer_pow(equation: Equation, x: mx.array) -> mx.array:
    exponent = equation.params["y"]
    if exponent == 0:
        return mx.ones_like(x)
    power: mx.array | None = None
    square, left = x, abs(exponent)
    while left:
        if left & 1:
            power = square if power is None else power * square
        left >>= 1
        square = mx.square(square) if left else square
    assert power is not None
    return mx.reciprocal(power) if exponent < 0 else power


@rules.define("one_minus_square")
def one_minus_square(_: Equation, x: mx.array) -> mx.array:
    one = constant_like(x, 1)
    return (one - x) * (one + x)


@rules.define("polynomial")
def polynomial(_: Equation, x: mx.array, *coefficients: mx.array) -> mx.array:
    total = mx.broadcast_to(coefficients[-1], x.shape)
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


@rules.define("exp")
def exp(_: Equation, x: mx.array) -> mx.array:
    return exponential(x)


def exponential(x: mx.array) -> mx.array:
    """The exponential; in float64 from expm1, for MLX's own is only as exact as float32."""
    if x.dtype != mx.float64:
        return mx.exp(x)
    positive = mx.expm1(mx.abs(x)) + 1
    return mx.where(x < 0, mx.reciprocal(positive), positive)


def _trigonometric(function: Unary) -> Callable[[Equation, mx.array], mx.array]:
    def rule(equation: Equation, x: mx.array) -> mx.array:
        if x.dtype == mx.float64:
            raise unsupported(equation, "its float64 results are only as exact as float32")
        return function(x)

    return rule


rules.define("sin")(_trigonometric(mx.sin))
rules.define("cos")(_trigonometric(mx.cos))


@rules.define("exp2")
def exp2(_: Equation, x: mx.array) -> mx.array:
    if is_complex(x):
        return mx.exp(x * math.log(2.0))
    return mx.power(constant_like(x, 2.0), x)


@rules.define("expm1")
def expm1(_: Equation, x: mx.array) -> mx.array:
    if not is_complex(x):
        return mx.expm1(x)
    real, imag = mx.real(x), mx.imag(x)
    # exp(a) cos(b) - 1 without the cancellation at small a and b.
    out = mx.expm1(real) * mx.cos(imag) - 2 * mx.square(mx.sin(imag / 2))
    return complex_of(out, mx.where(imag == 0, imag, mx.exp(real) * mx.sin(imag)))


@rules.define("logistic")
def logistic(_: Equation, x: mx.array) -> mx.array:
    by_parts = is_complex(x) or x.dtype == mx.float64
    return mx.reciprocal(1 + exponential(-x)) if by_parts else mx.sigmoid(x)


@rules.define("cbrt")
def cbrt(_: Equation, x: mx.array) -> mx.array:
    a = mx.abs(wide(x))
    root = mx.power(a, constant_like(a, 1 / 3))
    # One Newton step: pow of a rounded 1/3 is off by several units at large exponents.
    root = mx.where(mx.logical_and(a > 0, mx.isfinite(a)), root - (root - a / mx.square(root)) / 3, a)
    return mx.where(x < 0, -cast(root, x.dtype), mx.where(x == 0, x, cast(root, x.dtype)))


@rules.define("conj")
def conj(equation: Equation, x: mx.array) -> mx.array:
    return mx.conjugate(cast(x, out_dtype(equation)))


@rules.define("complex")
def complex_(equation: Equation, real: mx.array, imag: mx.array) -> mx.array:
    dtype = out_dtype(equation)
    return cast(complex_of(real, imag), dtype)


def complex_of(real: mx.array, imag: mx.array) -> mx.array:
    """A complex array from its parts; unlike ``real + 1j * imag`` it is right for infinities and -0."""
    pairs = mx.stack(list(mx.broadcast_arrays(real, imag)), axis=-1)
    return mx.squeeze(pairs.view(mx.complex64), -1)


# Choices and comparisons --------------------------------------------------------------------------------


@rules.define("select_n")
def select_n(_: Equation, which: mx.array, *cases: mx.array) -> mx.array:
    if is_bool(which) and len(cases) == 2:
        return mx.where(which, cases[1], cases[0])
    out = cases[-1]
    for index in reversed(range(len(cases) - 1)):
        out = mx.where(which <= index, cases[index], out)
    return out


# Order of evaluation -------------------------------------------------------------------------------------


@rules.define("optimization_barrier")
def optimization_barrier(_: Equation, *arrays: mx.array) -> list[mx.array]:
    """Every output depends on every input, so that a repeated computation is not merged with the first."""
    return mx.depends(list(arrays), list(arrays)) if arrays else []
