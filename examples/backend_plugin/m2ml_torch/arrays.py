"""NumPy <-> PyTorch arrays, and the two ways around PyTorch's unsigned integers, for which it has few functions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

import m2ml

_PAIRS: tuple[tuple[Any, torch.dtype], ...] = (
    (np.bool_, torch.bool),
    (np.int8, torch.int8),
    (np.int16, torch.int16),
    (np.int32, torch.int32),
    (np.int64, torch.int64),
    (np.uint8, torch.uint8),
    (np.uint16, torch.uint16),
    (np.uint32, torch.uint32),
    (np.float16, torch.float16),
    (ml_dtypes.bfloat16, torch.bfloat16),
    (np.float32, torch.float32),
    (np.float64, torch.float64),
    (np.complex64, torch.complex64),
    (np.complex128, torch.complex128),
)
_TO_TORCH = {np.dtype(host): native for host, native in _PAIRS}
_TO_NUMPY = {native: np.dtype(host) for host, native in _PAIRS}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: Unsigned integers that PyTorch stores but hardly computes with, and the signed ones with the same bits.
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}
HALVES = (torch.float16, torch.bfloat16)


def torch_dtype(dtype: Any) -> torch.dtype:
    """The PyTorch dtype of a NumPy dtype. Raises `m2ml.UnsupportedDtype`; never narrows."""
    try:
        return _TO_TORCH[np.dtype(dtype)]
    except KeyError:
        name = np.dtype(dtype).name
        raise m2ml.UnsupportedDtype(f"torch has no {name}; use the backend 'cpu', or another dtype") from None


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    found: np.dtype[Any] = _TO_NUMPY[dtype]
    return found


def from_host(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    dtype = torch_dtype(array.dtype)
    array = np.array(array, order="C")
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device=device, dtype=dtype)


def to_host(array: torch.Tensor) -> np.ndarray[Any, Any]:
    array = array.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if array.dtype == torch.bfloat16:
        return array.view(torch.int16).numpy().view(_BFLOAT16)
    return array.numpy()


def signed(x: torch.Tensor) -> torch.Tensor:
    """The same bits as signed integers, for what only moves them."""
    return x.view(SIGNED[x.dtype]) if x.dtype in SIGNED else x


def same_bits(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`signed` undone."""
    return x.view(dtype) if dtype in SIGNED and x.dtype == SIGNED[dtype] else x


def wide(x: torch.Tensor) -> torch.Tensor:
    """Integers as int64, which holds every value that PyTorch computes with here."""
    return x if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool else x.to(torch.int64)
