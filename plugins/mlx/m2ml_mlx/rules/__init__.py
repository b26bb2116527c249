"""Every rule of the MLX engine: importing this package fills the table."""

from __future__ import annotations

import importlib.util

FAMILIES = (
    "elementwise",
    "conversions",
    "integers",
    "special",
    "structure",
    "reductions",
    "dot",
    "conv",
    "windows",
    "indexing",
    "scatter",
    "sorting",
    "linalg",
    "fft",
    "random",
)

for _family in FAMILIES:
    if importlib.util.find_spec(f"{__name__}.{_family}"):
        importlib.import_module(f"{__name__}.{_family}")

from m2ml_mlx.rules.table import mlx_dtype, numpy_dtype, rules  # noqa: E402

__all__ = ["mlx_dtype", "numpy_dtype", "rules"]
