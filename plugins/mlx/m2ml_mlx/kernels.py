"""Kernels of ops on MLX: its own fused functions where they meet the contract, and Metal sources for what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from m2ml import Kernel


def _fast(op: str, load: Callable[[], Callable[..., Any]], **more: Any) -> Kernel:
    return Kernel(op, "mlx", f"mx.fast.{op}", load, about="MLX's own", **more)


def _no_empty_row(x: Any, *arrays: Any, **static: Any) -> str:
    return "" if x.shape[-1] else "the last axis is empty"


def _rms_norm() -> Callable[..., Any]:
    import mlx.core as mx

    def rms_norm(x: mx.array, weight: mx.array | None = None, *, eps: float) -> mx.array:
        return mx.fast.rms_norm(x, weight if weight is None else weight.astype(x.dtype), eps)

    return rms_norm


def _same_dtype(x: Any, weight: Any = None, **static: Any) -> str:
    """MLX multiplies in the dtype of ``x``: a wider weight would be rounded first."""
    if weight is not None and weight.dtype != x.dtype:
        return "the weight has another dtype"
    return _no_empty_row(x)


KERNELS = (_fast("rms_norm", _rms_norm, accepts=_same_dtype),)
