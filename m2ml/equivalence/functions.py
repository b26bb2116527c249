"""Error scales of library functions: exp, lgamma, igamma and the like, which no engine rounds correctly.

A good implementation returns a nearby value at a nearby argument (mixed forward-backward stability; Higham,
Accuracy and Stability of Numerical Algorithms, 1.5). Its error is then a few units of the value, plus what moving
the argument by a few units changes. Functions that JAX computes by formulas with larger intermediate numbers are
charged for those: the formula of each is named beside its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from m2ml.equivalence.rounding import tiny
from m2ml.interpreter import Equation

Array = np.ndarray[Any, Any]

#: Units in the last place of the value; XLA and MLX document none.
FUNCTION_UNITS = 8.0

#: Roundings of the argument: ``exp2(x) = exp(x * log 2)`` rounds the constant and the product.
ARGUMENT_UNITS = 2.0

#: Below this size of the argument, a step of one rounding unit of any dtype is small for the functions named below.
_MODERATE = 16.0

#: The least relative step that float64 resolves well in a difference.
_LEAST_STEP = 2.0**-26


def _lanczos(x: Array) -> Array:
    """lgamma by Lanczos' formula adds numbers as large as ``t log t`` for ``t = |x| + 7.5``."""
    t = np.abs(x) + 7.5
    return np.asarray(t * np.log(t))


def _gamma_exponent(a: Array, x: Array) -> Array:
    """The tails of the gamma distribution are ``exp(a log x - x - lgamma(a))`` times a series."""
    return np.asarray(a * np.abs(np.log(x)) + np.abs(x) + _lanczos(a))


def _slope(a: Array, x: Array, y: Array) -> Array:
    """The series' derivative in ``a`` adds terms of size ``log x`` and ``digamma(a)`` with the exponent's error."""
    terms = np.abs(np.log(x)) + np.log(np.abs(a) + 7.5)
    return np.asarray(_gamma_exponent(a, x) * np.maximum(np.abs(y), terms))


def _beta_exponent(a: Array, b: Array, x: Array) -> Array:
    return np.asarray(a * np.abs(np.log(x)) + b * np.abs(np.log1p(-x)) + _lanczos(a) + _lanczos(b) + _lanczos(a + b))


def _gamma_sample(a: Array, y: Array) -> Array:
    """A sample is ``d (1 + c x)^3`` of a normal ``x``, which moves with its uniform number as ``exp(x^2 / 2)``.

    Below ``a = 1`` it is also multiplied by the exponential of a logarithm; how much of ``y`` that is, is not known.
    """
    d = np.where(a < 1, a + 1, a) - 1 / 3
    c, root = 1 / (3 * np.sqrt(d)), np.cbrt(y / d)
    x = (root - 1) / c
    normal = np.abs(x) + np.sqrt(np.pi / 2) * np.exp(x * x / 2)
    return np.asarray(np.abs(y) * (1 + np.abs(np.log(y)) + 3 * c / root * normal))


def _chebyshev(x: Array, y: Array, at_zero: Array | float) -> Array:
    """Below 8 a Chebyshev series whose coefficients alternate: their sizes add up to the value of the series at 0."""
    return np.asarray(np.where(np.abs(x) <= 8, at_zero, np.abs(y)))


def _exponentials(x: Array, y: Array) -> Array:
    """Of complex numbers the hyperbolic sine is the difference of two exponentials."""
    return np.cosh(x.real) if np.iscomplexobj(x) else np.abs(y)


#: The largest number that the usual formula of a function handles: its rounding is absolute in the result.
_INTERMEDIATE: Mapping[str, Callable[..., Array]] = {
    "bessel_i0e": lambda x, y: _chebyshev(x, y, 1.0),
    "bessel_i1e": lambda x, y: _chebyshev(x, y, np.abs(x) / 2),
    "sinh": _exponentials,
    "random_gamma": lambda key, a, y: _gamma_sample(a, y),
    "cbrt": lambda x, y: np.abs(y) * np.maximum(np.abs(np.log(np.abs(x))) / 3, 1),  # exp(log x / 3) in older XLA
    "lgamma": lambda x, y: _lanczos(x),
    "digamma": lambda x, y: np.log(np.abs(x) + 7.5) + 1,
    "polygamma": lambda n, x, y: np.abs(y) * (_lanczos(n) + n * np.abs(np.log(x))),
    "igamma": lambda a, x, y: np.abs(y) * _gamma_exponent(a, x),
    "igammac": lambda a, x, y: _gamma_exponent(a, x),
    "igamma_grad_a": _slope,
    "random_gamma_grad": _slope,
    "regularized_incomplete_beta": lambda a, b, x, y: np.abs(y) * _beta_exponent(a, b, x),
}


#: ``|x f'(x)|`` where it is cheaper than two more values of the function: how a value moves with its argument.
_SENSITIVITY: Mapping[str, Callable[[Equation, Array, Array], Array]] = {
    "integer_pow": lambda equation, x, y: abs(equation.params["y"]) * np.abs(y),
    "exp": lambda equation, x, y: np.abs(x * y),
    "log": lambda equation, x, y: np.ones(y.shape),
    "logistic": lambda equation, x, y: np.abs(x * y * (1 - y)),
    "rsqrt": lambda equation, x, y: np.abs(y) / 2,
    "tanh": lambda equation, x, y: np.abs(x) * np.abs(1 - y * y),
}


def function_scale(
    equation: Equation, inputs: Sequence[Array], output: Array, u: float, rule: Callable[..., Array]
) -> Array:
    """The size of the rounding error of a library function, per element."""
    with np.errstate(all="ignore"):
        size = np.abs(output)
        if equation.name in _INTERMEDIATE:
            size = np.fmax(size, _finite(_INTERMEDIATE[equation.name](*inputs, output)))
        if equation.dtype == np.float16:  # whose numbers below the least normal one are not small, nor taken for zero
            size = np.where(size > 0, np.maximum(size, tiny(equation.dtype)), size)
        return np.asarray(FUNCTION_UNITS * u * size + ARGUMENT_UNITS * _sensitivity(equation, inputs, output, u, rule))


def _sensitivity(
    equation: Equation, inputs: Sequence[Array], output: Array, u: float, rule: Callable[..., Array]
) -> Array:
    """How far the value moves when each argument moves by one rounding unit."""
    if equation.name in _SENSITIVITY and np.max(np.abs(inputs[0]), initial=0.0) < _MODERATE:
        return u * _finite(_SENSITIVITY[equation.name](equation, inputs[0], output))
    step = max(u, _LEAST_STEP)
    total = np.zeros(output.shape)
    for i, x in enumerate(inputs):
        if x.dtype.kind not in "fc":
            continue
        size = np.abs(x)
        directions = (step, -step, 1j * step, -1j * step) if x.dtype.kind == "c" else (step, -step)
        moved = [rule(*inputs[:i], _step(x, d * size), *inputs[i + 1 :]) for d in directions]
        total += np.max([_finite(np.abs(y - output)) for y in moved], axis=0) * (u / step)
    return total


def _step(x: Array, step: Array) -> Array:
    """``x + step``, and -0 still -0: at a zero atan2 and its like jump with the sign."""
    return np.asarray(np.where(step == 0, x, x + step))


def _finite(x: Array) -> Array:
    return np.asarray(np.where(np.isfinite(x), x, 0.0))
