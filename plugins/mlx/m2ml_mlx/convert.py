"""NumPy <-> MLX arrays, every dtype MLX has."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from m2ml.errors import UnsupportedDtype, UnsupportedPrimitive
from m2ml_mlx.rules.table import mlx_dtype

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def check_dtype(dtype: Any, where: str) -> None:
    """Raise `m2ml.errors.UnsupportedDtype` unless the default MLX device has ``dtype``; never narrow."""
    dtype = np.dtype(dtype)
    try:
        mlx_dtype(dtype)
    except UnsupportedPrimitive as error:
        raise UnsupportedDtype(
            f"MLX has no {dtype.name} ({where}); use the backend 'cpu', or a smaller dtype in the program"
        ) from error
    if dtype == np.float64 and on_gpu():
        raise UnsupportedDtype(f"the GPU has no float64 ({where}); use the backend 'cpu', or float32 in the program")


def from_host(array: np.ndarray[Any, Any]) -> mx.array:
    """An MLX array with the values and dtype of ``array``."""
    check_dtype(array.dtype, "an array put on mlx")
    if any(stride < 0 for stride in array.strides):  # MLX refuses them
        array = array.copy()
    if array.dtype == _BFLOAT16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array, dtype=mlx_dtype(array.dtype))


def to_host(array: mx.array) -> np.ndarray[Any, Any]:
    """A NumPy copy of an MLX array; waits for it."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(_BFLOAT16)
    return np.array(array)
