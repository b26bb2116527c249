"""Discrete Fourier transforms over the trailing axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules

_TRANSFORMS: dict[str, Callable[..., Array]] = {
    "FFT": np.fft.fftn,
    "IFFT": np.fft.ifftn,
    "RFFT": np.fft.rfftn,
    "IRFFT": np.fft.irfftn,
}


@rules.define("fft")
def fft(equation: Equation, x: Array) -> Array:
    lengths = equation.params["fft_lengths"]
    if 0 in equation.shape or 0 in x.shape:
        return np.zeros(equation.shape, np.complex128)
    kind = equation.params["fft_type"]
    transform = _TRANSFORMS[getattr(kind, "name", str(kind))]
    return np.asarray(transform(x, s=lengths, axes=tuple(range(-len(lengths), 0))))
