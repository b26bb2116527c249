"""CUDA kernels through `mx.fast.cuda_kernel`: twins of Metal's for what a compiled graph of MLX does in more passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from m2ml import Kernel
from m2ml_mlx.kernels.shared import adamw_update, add_rms_norm, leading_dtype, one_dtype, some_leaves, swiglu
from m2ml_mlx.kernels.source import Source, has_cuda

SWIGLU = Source("cuda", "swiglu", ("gate", "up", "count"), ("y",))
ADD_RMS_NORM = Source("cuda", "add_rms_norm", ("x", "residual", "weight", "eps"), ("y", "total"))
ADAMW_UPDATE = Source(
    "cuda",
    "adamw_update",
    ("gradient", "mu", "nu", "param", "scalars", "numbers", "count"),
    ("result", "new_mu", "new_nu"),
)


def _kernel(source: Source, run: Callable[..., Any], accepts: Callable[..., str]) -> Kernel:
    def takes(*args: Any, **static: Any) -> str:
        return accepts(*args, **static) if has_cuda() else "there is no CUDA"

    return Kernel(
        source.file, "mlx", f"cuda/{source.file}", lambda: run, devices=("gpu",), accepts=takes, source=source.location
    )


KERNELS = (
    _kernel(SWIGLU, swiglu(SWIGLU, 1), one_dtype),
    _kernel(ADD_RMS_NORM, add_rms_norm(ADD_RMS_NORM), leading_dtype),
    _kernel(ADAMW_UPDATE, adamw_update(ADAMW_UPDATE, 1), some_leaves),
)
