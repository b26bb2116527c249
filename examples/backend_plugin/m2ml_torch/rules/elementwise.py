"""Arithmetic, comparisons, functions and selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import m2ml
from m2ml_torch.arrays import torch_dtype, wide
from m2ml_torch.rules.table import counts, function, moves, out_dtype, rules

for _name, _compute in {
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "digamma": torch.digamma,
    "erf": torch.erf,
    "erf_inv": torch.erfinv,
    "erfc": torch.erfc,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "lgamma": torch.lgamma,
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "logistic": torch.sigmoid,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": lambda x: x.sqrt() if x.is_complex() else x.double().sqrt(),  # in float32 it is not rounded correctly
    "tan": torch.tan,
    "tanh": torch.tanh,
    "bessel_i0e": torch.special.i0e,
    "bessel_i1e": lambda x: torch.where(x == 0, x, torch.special.i1e(x)),  # PyTorch loses the sign of zero
}.items():
    function(_name, _compute)

for _names, _operator in {
    "mul": torch.mul,
    "eq": torch.eq,
    "ne": torch.ne,
    "ge": torch.ge,
    "gt": torch.gt,
    "le": torch.le,
    "lt": torch.lt,
}.items():
    counts(*_names.split())(lambda equation, x, y, operator=_operator: operator(x, y))


def is_integer(x: torch.Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _by_parts(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Sums of complex numbers part by part: PyTorch multiplies by a complex one first, which loses signs of zeros."""

    def rule(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not x.is_complex():
            return operator(x, y)
        return torch.view_as_complex(operator(torch.view_as_real(x), torch.view_as_real(y)))

    return rule


counts("add", "add_any")(_by_parts(torch.add))
counts("sub")(_by_parts(torch.sub))


@rules.define("multiply_add")
def multiply_add(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Rounded once, as XLA scales random numbers: then a seed gives the same bits."""
    return (x.double() * y.double() + z.double()).float()


@counts("neg")
def neg(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(-torch.view_as_real(x)) if x.is_complex() else -x


@counts("abs")
def absolute(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.abs(x)


@counts("square")
def square(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return x * x


@counts("sign")
def sign(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """The sign of a zero and NaN are kept."""
    return torch.where((x == 0) | (x != x), x, torch.sgn(x))


@counts("div")
def div(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Integers towards zero; by zero all bits are set, where PyTorch would end the process."""
    if not is_integer(x):
        return x / y
    return torch.where(y == 0, -1, torch.div(x, torch.where(y == 0, 1, y), rounding_mode="trunc"))


@counts("rem")
def rem(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The remainder with the sign of the dividend; of a division by zero, the dividend."""
    if not is_integer(x):
        return torch.fmod(x.double(), y.double())
    return torch.where(y == 0, x, torch.fmod(x, torch.where(y == 0, 1, y)))


@counts("pow")
def power(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.pow(x, y if y.is_floating_point() else y.to(x.dtype))


@counts("integer_pow")
def integer_pow(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    exponent = equation.params["y"]
    return torch.pow(x.double(), exponent) if x.is_floating_point() else _repeated_product(x, exponent)


def _repeated_product(x: torch.Tensor, exponent: int) -> torch.Tensor:
    if exponent < 0:
        return 1 / _repeated_product(x, -exponent)
    result = torch.ones_like(x)
    for _ in range(exponent):
        result = result * x
    return result


@counts("atan2")
def atan2(equation: m2ml.Equation, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.atan2(y, x)


@counts("nextafter")
def nextafter(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(x, y)


@counts("cbrt")
def cbrt(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.copysign(torch.pow(x.abs().double(), 1 / 3), x)


@counts("round")
def round_(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    if equation.params["rounding_method"].name == "TO_NEAREST_EVEN":
        return torch.round(x)
    whole = torch.trunc(x)
    return torch.copysign(
        torch.where((x - whole).abs() >= 0.5, whole + torch.copysign(torch.ones_like(x), x), whole), x
    )


@counts("max")
def maximum(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """NaN wins; 0 is larger than -0."""
    larger = torch.maximum(x, y)
    return torch.where((x == 0) & (y == 0), x + y, larger) if x.is_floating_point() else larger


@counts("min")
def minimum(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """NaN wins; -0 is smaller than 0."""
    smaller = torch.minimum(x, y)
    return torch.where((x == 0) & (y == 0), -(-x - y), smaller) if x.is_floating_point() else smaller


@counts("clamp")
def clamp(equation: m2ml.Equation, low: torch.Tensor, x: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return minimum(equation, maximum(equation, x, low.expand_as(x)), high.expand_as(x))


@counts("is_finite")
def is_finite(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(x)


@moves("select_n")
def select_n(equation: m2ml.Equation, which: torch.Tensor, *cases: torch.Tensor) -> torch.Tensor:
    result = cases[0]
    for index, case in enumerate(cases[1:], 1):
        result = torch.where(which if which.dtype == torch.bool else which >= index, case, result)
    return result


@rules.define("complex")
def complex_(equation: m2ml.Equation, real: torch.Tensor, imag: torch.Tensor) -> torch.Tensor:
    return torch.complex(real, imag)


@rules.define("real")
def real(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.real(x)


@rules.define("imag")
def imag(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.imag(x)


@rules.define("conj")
def conj(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.conj_physical(x.to(out_dtype(equation)))


@rules.define("convert_element_type")
def convert_element_type(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """Floats become integers by truncation, saturating, NaN to 0."""
    dtype = out_dtype(equation)
    if dtype == torch.bool:
        return x != 0
    if x.is_complex() and not dtype.is_complex:
        x = x.real
    if x.is_floating_point() and not (dtype.is_floating_point or dtype.is_complex):
        return _saturated(x.double(), dtype)
    return x.to(torch.int64).to(dtype) if not (x.is_floating_point() or x.is_complex()) else x.to(dtype)


def _saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    info = torch.iinfo(dtype)
    low, high = float(info.min), float(info.max)
    inside = torch.where((x > low) & (x < high), x.trunc(), torch.zeros_like(x)).to(torch.int64)
    whole = torch.where(x >= high, info.max, torch.where(x <= low, info.min, inside))
    return whole.to(dtype)


@rules.define("bitcast_convert_type")
def bitcast_convert_type(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """A trailing axis appears or goes when the widths differ."""
    dtype = out_dtype(equation)
    x = x.contiguous()
    if x.dtype.itemsize > dtype.itemsize:
        x = x.unsqueeze(-1)
    return (x.view(dtype) if x.numel() else torch.empty(0, dtype=dtype, device=x.device)).reshape(equation.shape)


def infinity(dtype: Any, *, least: bool) -> Any:
    """The identity of max, or of min, in a NumPy dtype."""
    native = torch_dtype(dtype)
    if native == torch.bool:
        return not least
    if native.is_floating_point:
        return -math.inf if least else math.inf
    info = torch.iinfo(native)
    return info.min if least else info.max


def total_order(x: torch.Tensor) -> torch.Tensor:
    """Integers in the order -NaN < -inf < ... < -0 < 0 < ... < inf < NaN; floats of 32 bits at most."""
    if not x.is_floating_point():
        return wide(x)
    bits = x.float().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def in_total_order(keys: torch.Tensor) -> torch.Tensor:
    """`total_order` undone: float32."""
    return torch.where(keys < 0, keys ^ 0x7FFFFFFF, keys).view(torch.float32)
