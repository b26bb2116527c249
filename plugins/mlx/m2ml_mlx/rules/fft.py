"""Discrete Fourier transforms over the last axes."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from jax.lax import FftType

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import out_dtype, rules, unsupported

_TRANSFORMS: dict[FftType, Callable[..., mx.array]] = {
    FftType.FFT: mx.fft.fftn,
    FftType.IFFT: mx.fft.ifftn,
    FftType.RFFT: mx.fft.rfftn,
    FftType.IRFFT: mx.fft.irfftn,
}


@rules.define("fft")
def fft(equation: Equation, x: mx.array) -> mx.array:
    lengths, dtype = equation.params["fft_lengths"], out_dtype(equation)
    if not lengths:
        return x
    if x.size == 0 or 0 in equation.shape:
        return mx.zeros(equation.shape, dtype)
    if x.dtype == mx.float64 or dtype == mx.float64:
        raise unsupported(equation, "its transforms have single precision")
    axes = list(range(-len(lengths), 0))
    return _TRANSFORMS[FftType(equation.params["fft_type"])](x, s=tuple(lengths), axes=axes)
