"""Metal kernels through `mx.fast.metal_kernel`, for what MLX lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from m2ml import Kernel
from m2ml_mlx.kernels import losses, sampling
from m2ml_mlx.kernels.shared import adamw_update, add_rms_norm, leading_dtype, one_dtype, some_leaves, swiglu
from m2ml_mlx.kernels.source import Source, each, has_metal, worthwhile

SWIGLU = Source("metal", "swiglu", ("gate", "up", "count"), ("y",))
ADD_RMS_NORM = Source("metal", "add_rms_norm", ("x", "residual", "weight", "eps"), ("y", "total"))
ADAMW_UPDATE = Source(
    "metal",
    "adamw_update",
    ("gradient", "mu", "nu", "param", "scalars", "numbers", "count"),
    ("result", "new_mu", "new_nu"),
)
BATCH_NORM_ACT = Source("metal", "batch_norm_act", ("x", "mean", "variance", "weight", "bias", "eps", "count"), ("y",))
ROPE = Source("metal", "rope", ("x", "positions", "inverse", "magnitude"), ("y",))

#: The activations the body has, in the order in which it numbers them.
ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu_tanh")


def batch_norm_act(
    x: Any, mean: Any, variance: Any, weight: Any, bias: Any, *, train: bool, activation: str, **static: Any
) -> Any:
    """In training the statistics are MLX's reductions; what the body saves is the pass over x that follows."""
    used, kept = (mean, variance), (mean, variance)
    if train:
        used, kept = _statistics(x, mean, variance, static["momentum"])
    some = [mean if v is None else v for v in (weight, bias)]
    types = {"WEIGHTED": weight is not None, "BIASED": bias is not None, "ACTIVATION": ACTIVATIONS.index(activation)}
    given = x, *used, *some, float(static["eps"]), x.size
    y = BATCH_NORM_ACT(*given, out=[(x.shape, x.dtype)], threads=each(x.size, 4), T=x.dtype, **types)[0]
    return y, *kept


def _statistics(x: Any, mean: Any, variance: Any, momentum: float) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Mean and variance of each channel of x, and the running ones, moved to them."""
    import mlx.core as mx

    axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    wide = x.astype(mx.float32)
    used = mx.mean(wide, axis=axes), mx.var(wide, axis=axes)
    new = used[0], used[1] * (count / (count - 1))
    moved = [
        ((1 - momentum) * old.astype(mx.float32) + momentum * value).astype(old.dtype)
        for old, value in zip((mean, variance), new, strict=True)
    ]
    return used, (moved[0], moved[1])


def known_activation(x: Any, *arrays: Any, activation: str, **static: Any) -> str:
    return worthwhile(x) if activation in ACTIVATIONS else f"it does not have the activation {activation}"


def rope(x: Any, positions: Any, inverse: Any, *, interleaved: bool, magnitude: float) -> Any:
    heads, dim = x.shape[-2:]
    flat = x.reshape(-1, heads, dim)
    threads = dim - inverse.shape[0], len(flat) * heads, 32
    given = flat, positions.reshape(-1), inverse, float(magnitude)
    return ROPE(*given, out=[(x.shape, x.dtype)], threads=threads, T=x.dtype, INTERLEAVED=interleaved)[0]


def some_pairs(x: Any, positions: Any, inverse: Any, **static: Any) -> str:
    if not inverse.size:
        return "nothing is rotated"
    return worthwhile(jax.ShapeDtypeStruct((math.prod(x.shape[:-1]), x.shape[-1]), x.dtype))


def _kernel(source: Source, run: Callable[..., Any], accepts: Callable[..., str], op: str = "") -> Kernel:
    def takes(*args: Any, **static: Any) -> str:
        return accepts(*args, **static) if has_metal() else "there is no Metal"

    op = op or source.file
    devices = ("gpu", "metal (host)")
    return Kernel(op, "mlx", f"metal/{op}", lambda: run, devices=devices, accepts=takes, source=source.location)


KERNELS = (
    _kernel(SWIGLU, swiglu(SWIGLU, 4), one_dtype),
    _kernel(ADD_RMS_NORM, add_rms_norm(ADD_RMS_NORM), leading_dtype),
    _kernel(ADAMW_UPDATE, adamw_update(ADAMW_UPDATE, 4), some_leaves),
    _kernel(BATCH_NORM_ACT, batch_norm_act, known_activation),
    _kernel(ROPE, rope, some_pairs),
    _kernel(losses.ROWS, losses.softmax_cross_entropy, losses.some_rows),
    _kernel(losses.GRADIENT, losses.softmax_cross_entropy_backward, losses.some_rows_backward),
    _kernel(losses.ROWS, losses.linear_cross_entropy, losses.some_tokens, "linear_cross_entropy"),
    _kernel(sampling.SAMPLE_TOKEN, sampling.sample_token, sampling.drawn),
)
