"""Special functions as MLX graphs: float32 inside, in the formulas XLA uses where results have to agree closely."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from m2ml.interpreter import Equation
from m2ml_mlx.rules.erf_inv import erf_inv
from m2ml_mlx.rules.table import cast, constant_like, rules, unsupported

Function = Callable[[mx.array], mx.array]
Array = np.ndarray[Any, np.dtype[np.float64]]


def _in_float32(function: Function) -> Callable[[Equation, mx.array], mx.array]:
    """A rule that evaluates ``function`` in float32 and rounds once."""

    def rule(equation: Equation, x: mx.array) -> mx.array:
        if x.dtype == mx.float64:
            raise unsupported(equation, "its coefficients are those for float32")
        return cast(function(cast(x, mx.float32)), x.dtype)

    return rule


def horner(x: mx.array, coefficients: Sequence[float | mx.array]) -> mx.array:
    """The polynomial with ``coefficients``, lowest degree first."""
    total = coefficients[-1] * x
    for coefficient in reversed(coefficients[1:-1]):
        total = (total + coefficient) * x
    return total + coefficients[0]


# The error function ---------------------------------------------------------------------------------------

#: erf(x) / x in powers of x**2 for abs(x) < 1: minimax fit, relative error 2**-24.6.
_ERF = (1.12837911, -0.37612325, 0.112801798, -0.0267113093, 0.0049175499, -0.000563141482)
#: exp(x**2) erfc(x) / t in powers of t = 1 / (1 + x / 2) for 0 <= x: minimax fit, relative error 2**-24.4.
_ERFCX = (
    0.282085568,
    0.282390058,
    0.242996633,
    0.203109786,
    -0.0276230332,
    0.279511869,
    -0.488460124,
    0.285182387,
    -0.0591932312,
)


def erf(x: mx.array) -> mx.array:
    """MLX's own, except near 0 on its CPU, where it has no relative accuracy."""
    if mx.default_device() != mx.cpu:
        return mx.erf(x)
    return mx.where(mx.abs(x) < 1, x * horner(mx.square(x), _ERF), mx.erf(x))


def erfc(x: mx.array) -> mx.array:
    """exp(-x**2) t Q(t) with t = 1 / (1 + abs(x) / 2), reflected for negative x: accurate far out in the tail."""
    t = mx.reciprocal(1 + 0.5 * mx.abs(x))
    tail = mx.exp(-mx.square(x)) * (t * horner(t, _ERFCX))
    return mx.where(x < 0, 2 - tail, tail)


# The gamma function ----------------------------------------------------------------------------------------

#: Lanczos approximation with g = 7 and n = 9 (P. Godfrey): the constant term and the numerators.
_LANCZOS_G = 7.0
_LANCZOS_BASE = 0.99999999999980993227684700473478
_LANCZOS = (
    676.520368121885098567009190444019,
    -1259.13921672240287047156078755283,
    771.3234287776530788486528258894,
    -176.61502916214059906584551354,
    12.507343278686904814458936853,
    -0.13857109526572011689554707,
    9.984369578019570859563e-6,
    1.50563273514931155834e-7,
)


def _log_t(z: mx.array) -> tuple[mx.array, mx.array]:
    """z + g + 1/2 and its logarithm, by log1p of the small part."""
    return z + (_LANCZOS_G + 0.5), math.log(_LANCZOS_G + 0.5) + mx.log1p(z / (_LANCZOS_G + 0.5))


def lgamma(x: mx.array) -> mx.array:
    reflected = x < 0.5
    z = mx.where(reflected, -x, x - 1)
    series = constant_like(x, _LANCZOS_BASE)
    for index, numerator in enumerate(_LANCZOS):
        series = series + numerator / (z + (index + 1))
    t, log_t = _log_t(z)
    log_y = (z + 0.5 - t / log_t) * log_t + (math.log(2 * math.pi) / 2 + mx.log(series))
    size = mx.abs(x)
    fraction = size - mx.floor(size)
    # sin(pi f) is symmetric about 1/2 and most exact near 0.
    fraction = mx.where(fraction > 0.5, 1 - fraction, fraction)
    log_sine = mx.log(mx.sin(math.pi * fraction))
    reflection = mx.where(mx.isinf(log_sine), -log_sine, math.log(math.pi) - log_sine - log_y)
    return mx.where(mx.isinf(x), size, mx.where(reflected, reflection, log_y))


def digamma(x: mx.array) -> mx.array:
    reflected = x < 0.5
    z = mx.where(reflected, -x, x - 1)
    numerator, denominator = constant_like(x, 0.0), constant_like(x, _LANCZOS_BASE)
    for index, factor in enumerate(_LANCZOS):
        term = z + (index + 1)
        numerator = numerator - factor / mx.square(term)
        denominator = denominator + factor / term
    t, log_t = _log_t(z)
    y = log_t + numerator / denominator - _LANCZOS_G / t
    # The nearest integer is taken off first: pi times a large x has no exact cotangent.
    fraction = x + mx.abs(mx.floor(x + 0.5))
    angle = math.pi * fraction
    reflection = y - math.pi * mx.cos(angle) / mx.sin(angle)
    pole = mx.logical_and(x <= 0, x == mx.floor(x))
    return mx.where(mx.logical_and(pole, mx.isfinite(x)), math.nan, mx.where(reflected, reflection, y))


# Bessel functions --------------------------------------------------------------------------------------------


@functools.cache
def _bessel_series(order: int) -> tuple[tuple[float, ...], ...]:
    """Chebyshev series of exp(-x) I(x) on [0, 2] (over x for order 1) and [2, 8], and of it times sqrt(x) beyond."""
    angles = (np.arange(4096) + 0.5) * np.pi / 4096

    def scaled(x: Array) -> Array:
        # The integral over a period: the midpoint rule is exact to rounding.
        kernel = np.exp(x[:, None] * (np.cos(angles) - 1)) * np.cos(order * angles)
        return np.asarray(kernel.mean(axis=1), np.float64)

    interpolate: Any = np.polynomial.chebyshev.chebinterpolate
    near = interpolate(lambda y: scaled(y + 1) / (y + 1) if order else scaled(y + 1), 12)
    middle = interpolate(lambda y: scaled(3 * y + 5), 14)
    far = interpolate(lambda y: scaled(16 / (y + 1)) * np.sqrt(16 / (y + 1)), 7)
    return tuple(tuple(series.tolist()) for series in (near, middle, far))


def _chebyshev(x: mx.array, coefficients: Sequence[float]) -> mx.array:
    """Clenshaw's sum of a Chebyshev series."""
    last, before = constant_like(x, 0.0), constant_like(x, 0.0)
    for coefficient in reversed(coefficients[1:]):
        last, before = 2 * x * last - before + coefficient, last
    return x * last - before + coefficients[0]


def _bessel(order: int) -> Function:
    def function(x: mx.array) -> mx.array:
        near, middle, far = _bessel_series(order)
        size = mx.abs(x)
        inner = _chebyshev(mx.minimum(size, 2.0) - 1, near)
        inner = inner * x if order else inner
        between = _chebyshev((mx.clip(size, 2.0, 8.0) - 5) / 3, middle)
        outer = _chebyshev(16 / mx.maximum(size, 8.0) - 1, far) / mx.sqrt(size)
        beyond = mx.where(size <= 8, between, outer)
        return mx.where(size <= 2, inner, mx.where(x < 0, -beyond, beyond) if order else beyond)

    return function


for _name, _function in {
    "bessel_i0e": _bessel(0),
    "bessel_i1e": _bessel(1),
    "digamma": digamma,
    "erf": erf,
    "erf_inv": erf_inv,
    "erfc": erfc,
    "lgamma": lgamma,
}.items():
    rules.define(_name)(_in_float32(_function))
