"""The C++ kernels of the ops that come with m2ml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from m2ml import Kernel
from m2ml_cpu.ffi import handler, source_of

Load = Callable[[], Callable[..., Any]]


def like(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def load_rms_norm() -> Callable[..., Any]:
    call = handler(source_of("rms_norm"))

    def rms_norm(x: Any, weight: Any = None, *, eps: float) -> Any:
        return call(like(x), x, *(() if weight is None else (weight,)), eps=np.float32(eps))

    return rms_norm


def cpp(op: str, load: Load, about: str, **more: Any) -> Kernel:
    return Kernel(op, "cpu", f"cpp/{op}", load, devices=("cpu",), source=f"cpp/{op}.cc", about=about, **more)


KERNELS = (cpp("rms_norm", load_rms_norm, "one pass over memory, rows in parallel"),)
