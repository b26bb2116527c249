"""Special functions."""

from __future__ import annotations

import numpy as np
import scipy.special

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules


@rules.define("erf")
def erf(equation: Equation, x: Array) -> Array:
    return np.asarray(scipy.special.erf(x))


@rules.define("erfc")
def erfc(equation: Equation, x: Array) -> Array:
    return np.asarray(scipy.special.erfc(x))


@rules.define("erf_inv")
def erf_inv(equation: Equation, x: Array) -> Array:
    return np.asarray(np.copysign(scipy.special.erfinv(x), x))


@rules.define("lgamma")
def lgamma(equation: Equation, x: Array) -> Array:
    """The logarithm of the absolute value of the gamma function; infinite at its poles."""
    return np.where(np.isinf(x), np.inf, scipy.special.gammaln(x))


@rules.define("digamma")
def digamma(equation: Equation, x: Array) -> Array:
    """The derivative of lgamma; NaN at its poles."""
    return np.where((x <= 0) & (x == np.floor(x)), np.nan, scipy.special.psi(x))


@rules.define("zeta")
def zeta(equation: Equation, x: Array, q: Array) -> Array:
    """The Hurwitz zeta function."""
    return np.asarray(scipy.special.zeta(x, q))


@rules.define("polygamma")
def polygamma(equation: Equation, n: Array, x: Array) -> Array:
    """The derivative of order ``n`` of digamma; NaN for an order that is no natural number."""
    sign = np.where(n % 2 == 0, -1.0, 1.0)
    value = sign * scipy.special.gamma(n + 1) * scipy.special.zeta(n + 1, x)
    value = np.where(n == 0, digamma(equation, x), value)
    return np.where((n < 0) | (n != np.floor(n)), np.nan, value)


@rules.define("bessel_i0e")
def bessel_i0e(equation: Equation, x: Array) -> Array:
    return np.asarray(scipy.special.i0e(x))


@rules.define("bessel_i1e")
def bessel_i1e(equation: Equation, x: Array) -> Array:
    return np.asarray(np.copysign(scipy.special.i1e(x), x))


@rules.define("regularized_incomplete_beta")
def regularized_incomplete_beta(equation: Equation, a: Array, b: Array, x: Array) -> Array:
    return np.asarray(scipy.special.betainc(a, b, x))


def _outside(a: Array, x: Array) -> Array:
    return np.asarray((a < 0) | (x < 0) | ((a == 0) & (x == 0)))


@rules.define("igamma")
def igamma(equation: Equation, a: Array, x: Array) -> Array:
    """The regularised lower incomplete gamma function."""
    return np.where(_outside(a, x), np.nan, scipy.special.gammainc(a, x))


@rules.define("igammac")
def igammac(equation: Equation, a: Array, x: Array) -> Array:
    """The regularised upper incomplete gamma function."""
    return np.where(_outside(a, x), np.nan, scipy.special.gammaincc(a, x))


#: Weights of the central difference of order eight: f(x + kh) - f(x - kh) for k = 1, 2, 3, 4.
_DIFFERENCE = (4 / 5, -1 / 5, 4 / 105, -1 / 280)


def _igamma_slope(a: Array, x: Array) -> Array:
    """The derivative of igamma in ``a``, by differences of whichever tail is small, which loses no digits."""
    step = 0.02 * np.minimum(a, np.sqrt(a))
    upper = x > a
    slope = np.zeros(np.broadcast_shapes(a.shape, x.shape))
    for k, weight in enumerate(_DIFFERENCE, 1):
        right, left = a + k * step, a - k * step
        lower_tail = scipy.special.gammainc(right, x) - scipy.special.gammainc(left, x)
        upper_tail = scipy.special.gammaincc(left, x) - scipy.special.gammaincc(right, x)
        slope = slope + weight * np.where(upper, upper_tail, lower_tail) / step
    return slope


@rules.define("igamma_grad_a")
def igamma_grad_a(equation: Equation, a: Array, x: Array) -> Array:
    outside = (a <= 0) | (x < 0) | np.isnan(a) | np.isnan(x)
    return np.where(outside, np.nan, np.where(x == 0, 0.0, _igamma_slope(a, x)))


@rules.define("random_gamma_grad")
def random_gamma_grad(equation: Equation, a: Array, sample: Array) -> Array:
    """How a gamma sample moves with its shape parameter when its quantile stays."""
    density = np.exp((a - 1) * np.log(sample) - sample - scipy.special.gammaln(a))
    return np.asarray(-igamma_grad_a(equation, a, sample) / density)
