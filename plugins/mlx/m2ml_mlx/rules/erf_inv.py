"""The inverse error function, bit for bit as XLA CPU computes it: normal random numbers are made of it.

XLA evaluates M. Giles, Approximating the erfinv function (2011), with fused multiply-adds and with Cephes'
approximations of log1p and log. Every step here rounds where XLA's does. MLX has no fused multiply-add, but on
its CPU a product and a sum in float64, rounded once, are one; on a GPU they are rounded twice, and results
differ in the last bit or two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from m2ml_mlx.rules.elementwise import multiply_add
from m2ml_mlx.rules.table import constant

#: Giles's coefficients for w < 5 and for the rest, highest degree first.
_GILES = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)
#: Cephes log1p: numerator and denominator, highest degree first.
_LOG1P_NUMERATOR = (
    4.5270000862445199635215e-5,
    4.9854102823193375972212e-1,
    6.5787325942061044846969e0,
    2.9911919328553073277375e1,
    6.0949667980987787057556e1,
    5.7112963590585538103336e1,
    2.0039553499201281259648e1,
)
_LOG1P_DENOMINATOR = (
    1.0,
    1.5062909083469192043167e1,
    8.3047565967967209469434e1,
    2.2176239823732856465394e2,
    3.0909872225312059774938e2,
    2.1642788614495947685003e2,
    6.0118660497603843919306e1,
)
#: Cephes logf in three polynomials of degree two, and log(2) in two parts.
_LOG = (
    (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1),
    (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_LOG2_LOW, _LOG2_HIGH = -2.12194440e-4, 0.693359375


def _single(value: float) -> mx.array:
    return constant(value, mx.float32)


def _polynomial(x: mx.array, coefficients: Sequence[float]) -> mx.array:
    total = _single(coefficients[0])
    for coefficient in coefficients[1:]:
        total = multiply_add(total, x, _single(coefficient))
    return total


def log(x: mx.array) -> mx.array:
    """The logarithm of positive normal float32 numbers."""
    pattern = x.view(mx.int32)
    exponent = mx.right_shift(pattern, constant(23, mx.int32)) - constant(126, mx.int32)
    fraction = mx.bitwise_or(mx.bitwise_and(pattern, constant(0x7FFFFF, mx.int32)), constant(0x3F000000, mx.int32))
    mantissa = fraction.view(mx.float32)
    low = mantissa < math.sqrt(0.5)
    power = mx.where(low, exponent - 1, exponent).astype(mx.float32)
    m = mx.where(low, mantissa + mantissa, mantissa) - 1.0
    square = mx.square(m)
    cube = square * m
    first, *others = (_polynomial(m, coefficients) for coefficients in _LOG)
    for other in others:
        first = multiply_add(first, cube, other)
    tail = multiply_add(first, cube, power * _LOG2_LOW)
    return multiply_add(power, _single(_LOG2_HIGH), (m - 0.5 * square) + tail)


def log1p(x: mx.array) -> mx.array:
    """log(1 + x) of float32 numbers in (-1, 0]."""
    square = mx.square(x)
    ratio = _polynomial(x, _LOG1P_NUMERATOR) / _polynomial(x, _LOG1P_DENOMINATOR)
    small = x + multiply_add(_single(-0.5), square, x * square * ratio)
    return mx.where(x > 1 - math.sqrt(2), small, log(1.0 + x))


def erf_inv(x: mx.array) -> mx.array:
    """The inverse error function of float32 numbers; plus or minus infinity at 1 and -1, NaN beyond."""
    size = mx.abs(x)
    w = -log1p(-mx.square(x))
    central = w < 5.0
    w = mx.where(central, w - 2.5, mx.sqrt(w) - 3.0)
    total: mx.array | None = None
    for near, far in _GILES:
        coefficient = mx.where(central, _single(near), _single(far))
        total = coefficient if total is None else multiply_add(total, w, coefficient)
    assert total is not None
    return mx.where(size < 1.0, total * x, mx.where(size == 1.0, x * math.inf, math.nan))
