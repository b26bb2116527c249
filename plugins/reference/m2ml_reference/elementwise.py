"""Elementwise arithmetic, comparisons, selection and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import scipy.special

from m2ml.interpreter import Equation
from m2ml_reference.integers import int_div, int_rem
from m2ml_reference.values import (
    Array,
    greatest,
    is_complex,
    is_float,
    is_integer,
    least,
    narrow,
    round_to_dtype,
    round_to_format,
    rules,
    wide,
    widen,
)


def _plain(name: str, function: Callable[..., Array]) -> None:
    """A primitive that is one NumPy function of its operands."""
    rules.define(*name.split())(lambda equation, *arrays: function(*arrays))


_PLAIN: dict[str, Callable[..., Any]] = {
    "add add_any": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "cos": np.cos,
    "sin": np.sin,
    "tan": np.tan,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "cosh": np.cosh,
    "sinh": np.sinh,
    "tanh": np.tanh,
    "acosh": np.arccosh,
    "asinh": np.arcsinh,
    "atanh": np.arctanh,
    "square": np.square,
    "real": np.real,
    "imag": np.imag,
    "conj": np.conj,
    "abs": np.abs,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
}

for _name, _function in _PLAIN.items():
    _plain(_name, _function)


@rules.define("expm1")
def expm1(equation: Equation, x: Array) -> Array:
    """Of a complex number on the real axis it is on the real axis; NumPy makes a NaN of it where it overflows."""
    y = np.asarray(np.expm1(x))
    if np.iscomplexobj(x):
        y.imag = np.where(x.imag == 0, x.imag, y.imag)
    return y


@rules.define("mul")
def mul(equation: Equation, x: Array, y: Array) -> Array:
    dtype = wide(equation.dtype)
    return np.asarray(x.astype(dtype, copy=False) * y.astype(dtype, copy=False))


@rules.define("multiply_add")
def multiply_add(equation: Equation, x: Array, y: Array, z: Array) -> Array:
    """One rounding of operands that their dtype holds: a random number is the same bits on every engine."""
    dtype = equation.dtype
    x, y, z = (round_to_dtype(operand, dtype) for operand in (x, y, z))
    return round_to_dtype(x * y + z, dtype)


@rules.define("div")
def div(equation: Equation, x: Array, y: Array) -> Array:
    return int_div(x, y) if is_integer(x.dtype) else quotient(x, y)


def quotient(x: Array, y: Array) -> Array:
    """Of complex numbers as C's Annex G: divided by zero, the parts are infinite by the sign of its real part."""
    result = np.asarray(np.divide(x, y))
    if is_complex(result.dtype):
        infinity = np.copysign(np.inf, y.real)
        result = np.where(y == 0, _complex(infinity * x.real, infinity * x.imag), result)
    return result


@rules.define("rem")
def rem(equation: Equation, x: Array, y: Array) -> Array:
    """The remainder with the sign of the dividend."""
    return int_rem(x, y) if is_integer(x.dtype) else np.fmod(x, y)


@rules.define("pow")
def power(equation: Equation, x: Array, y: Array) -> Array:
    """JAX defines it with the exponent in the dtype of the result: an integer is rounded to it first."""
    return np.power(x, widen(narrow(y, equation.dtype)) if is_integer(y.dtype) else y)


@rules.define("integer_pow")
def integer_pow(equation: Equation, x: Array) -> Array:
    exponent = equation.params["y"]
    return np.power(x, float(exponent)) if is_float(x.dtype) else _repeated_product(x, exponent)


def _repeated_product(x: Array, exponent: int) -> Array:
    if exponent < 0:
        return quotient(np.ones_like(x), _repeated_product(x, -exponent))
    result = None
    while exponent:
        if exponent & 1:
            result = x if result is None else result * x
        x, exponent = x * x, exponent >> 1
    return np.ones_like(x) if result is None else result


@rules.define("one_minus_square")
def one_minus_square(equation: Equation, x: Array) -> Array:
    return np.asarray((1 - x) * (1 + x))


@rules.define("polynomial")
def polynomial(equation: Equation, x: Array, *coefficients: Array) -> Array:
    """Horner's rule; coefficients from the constant one up."""
    result = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


@rules.define("rsqrt")
def rsqrt(equation: Equation, x: Array) -> Array:
    return 1 / np.sqrt(x)


@rules.define("cbrt")
def cbrt(equation: Equation, x: Array) -> Array:
    return np.power(x, 1 / 3) if is_complex(x.dtype) else np.cbrt(x)


@rules.define("logistic")
def logistic(equation: Equation, x: Array) -> Array:
    return 1 / (1 + np.exp(-x)) if is_complex(x.dtype) else scipy.special.expit(x)


@rules.define("sign")
def sign(equation: Equation, x: Array) -> Array:
    """-1, 0 or 1, or a complex number's direction; the sign of a zero and NaN are kept."""
    if is_complex(x.dtype):
        size = np.abs(x)
        return np.where(x == 0, x, _complex(x.real / size, x.imag / size))
    return np.where(x == 0, x, np.sign(x))


@rules.define("round")
def round_(equation: Equation, x: Array) -> Array:
    if equation.params["rounding_method"].name == "TO_NEAREST_EVEN":
        return np.rint(x)
    whole = np.trunc(x)
    return np.copysign(np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1, x), whole), x)


@rules.define("nextafter")
def nextafter(equation: Equation, x: Array, y: Array) -> Array:
    """The neighbour among the values of the declared dtype; of equal numbers the second (NumPy forgets, in float16)."""
    return np.where(x == y, y, widen(np.nextafter(narrow(x, equation.dtype), narrow(y, equation.dtype))))


def larger(x: Array, y: Array) -> Array:
    """The larger; NaN wins, 0 is larger than -0, and complex numbers compare by real part first."""
    if is_complex(x.dtype):
        return np.where((x.real > y.real) | ((x.real == y.real) & (x.imag > y.imag)), x, y)
    return np.where((x == 0) & (y == 0), x + y, np.maximum(x, y)) if is_float(x.dtype) else np.maximum(x, y)


def smaller(x: Array, y: Array) -> Array:
    """The smaller; NaN wins, -0 is smaller than 0, and complex numbers compare by real part first."""
    if is_complex(x.dtype):
        return -larger(-x, -y)
    return np.where((x == 0) & (y == 0), -(-x - y), np.minimum(x, y)) if is_float(x.dtype) else np.minimum(x, y)


@rules.define("max")
def maximum(equation: Equation, x: Array, y: Array) -> Array:
    return larger(x, y)


@rules.define("min")
def minimum(equation: Equation, x: Array, y: Array) -> Array:
    return smaller(x, y)


@rules.define("clamp")
def clamp(equation: Equation, low: Array, x: Array, high: Array) -> Array:
    return smaller(larger(x, low), high)


@rules.define("select_n")
def select_n(equation: Equation, which: Array, *cases: Array) -> Array:
    if which.dtype == np.bool_ and len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    result = cases[0]
    for index, case in enumerate(cases[1:], 1):
        result = np.where(which >= index, case, result)
    return result


@rules.define("complex")
def complex_(equation: Equation, real: Array, imag: Array) -> Array:
    return _complex(real, imag)


def _complex(real: Array, imag: Array) -> Array:
    result = np.empty(np.broadcast_shapes(real.shape, imag.shape), np.complex128)
    result.real, result.imag = real, imag
    return result


def total_order(x: Array, dtype: Any) -> Array:
    """Integers in the order -NaN < -inf < ... < -0 < 0 < ... < inf < NaN."""
    if not is_float(dtype):
        return x
    bits = x.view(np.int64)
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


def _compare_total(name: str, function: Callable[..., Array]) -> None:
    def rule(equation: Equation, x: Array, y: Array) -> Array:
        dtype = equation.inputs[0].dtype
        return function(total_order(x, dtype), total_order(y, dtype))

    rules.define(name)(rule)


for _name, _function in {"eq_to": np.equal, "le_to": np.less_equal, "lt_to": np.less}.items():
    _compare_total(_name, _function)


@rules.define("convert_element_type")
def convert_element_type(equation: Equation, x: Array) -> Array:
    """Floats become integers by truncation, saturating, NaN to 0; eight-bit floats and narrower round at once."""
    dtype = equation.dtype
    if dtype == np.bool_:
        return np.asarray(x != 0)
    if is_complex(x.dtype) and not is_complex(dtype):
        x = x.real
    if is_integer(dtype) and is_float(x.dtype):
        return _saturate(np.trunc(x), dtype)
    if is_float(dtype):
        x = x.astype(np.float64, copy=False)
        return round_to_dtype(x, dtype) if ml_dtypes.finfo(dtype).bits <= 8 else x
    return x.astype(wide(dtype), copy=False)


def _saturate(x: Array, dtype: np.dtype[Any]) -> Array:
    low, high = least(dtype), greatest(dtype)
    inside = np.where((x > low) & (x < high), x, 0).astype(dtype)
    return np.where(x <= low, np.asarray(low, dtype), np.where(x >= high, np.asarray(high, dtype), inside))


@rules.define("bitcast_convert_type")
def bitcast_convert_type(equation: Equation, x: Array) -> Array:
    """The bits of the declared dtype read as another; a trailing axis appears or goes when widths differ."""
    source = narrow(x, equation.inputs[0].dtype)
    ratio = source.itemsize / equation.dtype.itemsize
    shape = x.shape if ratio == 1 else x.shape[:-1] if ratio < 1 else (*x.shape, int(ratio))
    return widen(np.frombuffer(source.tobytes(), equation.dtype).reshape(shape))


@rules.define("reduce_precision")
def reduce_precision(equation: Equation, x: Array) -> Array:
    """The value rounded to a format of ``exponent_bits`` and ``mantissa_bits`` whose tiny numbers flush to zero."""
    bias = 2 ** (equation.params["exponent_bits"] - 1) - 1
    source = ml_dtypes.finfo(equation.dtype)
    mantissa_bits = min(equation.params["mantissa_bits"], int(source.nmant))
    y = round_to_format(x, mantissa_bits, int(source.minexp))
    if mantissa_bits == 0:  # halfway, the last bit kept is that of the exponent, whose bias is odd
        fraction, exponent = np.frexp(x)
        y = np.where((np.abs(fraction) == 0.75) & (exponent % 2 == 0), np.copysign(2.0 ** (exponent - 1), x), y)
    if bias < int(source.maxexp) - 1:
        y = np.where(np.abs(y) < 2.0 ** (1 - bias), np.copysign(0, y), y)
        y = np.where(np.abs(y) >= 2.0 ** (bias + 1), np.copysign(np.inf, y), y)
    return np.where(np.isnan(x), x, y)
