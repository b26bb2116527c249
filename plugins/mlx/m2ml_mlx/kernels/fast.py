"""MLX's own fused functions, where they meet the contracts of the ops."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

from m2ml import Kernel
from m2ml_mlx.kernels import attention

Function = Callable[..., Any]


def _fast(op: str, run: Function, name: str = "", **more: Any) -> Kernel:
    return Kernel(op, "mlx", name or f"mx.fast.{op}", lambda: run, about="MLX's own", source=_version(), **more)


@functools.cache
def _version() -> str:
    try:
        return f"mlx {importlib.metadata.version('mlx')}"
    except importlib.metadata.PackageNotFoundError:  # the backend says so when it is asked for
        return "no mlx"


def same_dtype(x: Any, *weights: Any, **static: Any) -> str:
    """MLX multiplies in the dtype of ``x``: a wider weight would be rounded first."""
    if any(weight is not None and weight.dtype != x.dtype for weight in weights):
        return "a weight has another dtype"
    return "" if x.shape[-1] else "the last axis is empty"


def rms_norm(x: Any, weight: Any = None, *, eps: float) -> Any:
    import mlx.core as mx

    return mx.fast.rms_norm(x, weight, eps)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    """Widened where there is a bias: MLX rounds what it adds it to."""
    import mlx.core as mx

    if bias is None or x.dtype == mx.float32:
        return mx.fast.layer_norm(x, weight, bias, eps)
    scale = None if weight is None else weight.astype(mx.float32)
    return mx.fast.layer_norm(x.astype(mx.float32), scale, bias.astype(mx.float32), eps).astype(x.dtype)


def _gradients(function: Function) -> Function:
    """The backward op of a norm, by MLX's own fused derivative of ``function``."""

    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        import mlx.core as mx

        present = [i for i, x in enumerate(args) if x is not None]

        def of_present(*arrays: Any) -> Any:
            every = list(args)
            for i, x in zip(present, arrays, strict=True):
                every[i] = x
            return function(*every, **dict(static))

        _, given = mx.vjp(of_present, [args[i] for i in present], list(cotangents))
        return tuple(given[i] for i in wrt)

    return backward


def same_dtypes_backward(args: Any, outputs: Any, cotangents: Any, **static: Any) -> str:
    return same_dtype(*args) or ("" if args[0].size else "there are no elements")


def cross_entropy(logits: Any, labels: Any, *, ignore_index: int, **static: Any) -> Any:
    """Labels outside the vocabulary, of which MLX checks none, are replaced before and after."""
    import mlx.core as mx

    size = logits.shape[-1]
    labels = labels.astype(mx.int32)
    losses = mx.fast.cross_entropy(logits, mx.clip(labels, 0, size - 1))
    losses = mx.where((labels >= 0) & (labels < size), losses, mx.nan)
    return mx.where(labels == ignore_index, 0.0, losses)


def plain_loss(logits: Any, labels: Any, **static: Any) -> str:
    for name in ("label_smoothing", "z_loss", "return_lse"):
        if static[name]:
            return f"MLX's has no {name}"
    return "" if logits.size else "there are no logits"


def quantize(w: Any, *, bits: int, group_size: int | None, mode: str) -> Any:
    """At least two axes, which MLX asks for."""
    import mlx.core as mx

    from m2ml.ops import Quantized

    group_size, n = group_size or 64, w.shape[-1]
    parts = mx.quantize(w.reshape(-1, n), group_size=group_size, bits=bits)
    packed, scales, biases = (x.reshape(*w.shape[:-1], x.shape[-1]) for x in parts)
    return Quantized(packed, scales, biases, bits, group_size, mode)


def quantizes(w: Any, *, mode: str, **static: Any) -> str:
    if mode != "affine":
        return f"MLX rounds {mode} otherwise"
    return "" if w.size else "there are no elements"


def dequantize(w: Any, *, dtype: Any) -> Any:
    import mlx.core as mx

    from m2ml_mlx.rules.table import mlx_dtype

    rows: Any = [None if x is None else x.reshape(-1, x.shape[-1]) for x in (w.packed, w.scales, w.biases)]
    packed, scales, biases = rows
    found = mx.dequantize(packed, scales, biases, group_size=w.group_size, bits=w.bits, mode=w.mode).reshape(w.shape)
    return found if dtype is None else found.astype(mlx_dtype(dtype))


def dequantizes(w: Any, **static: Any) -> str:
    return "" if math.prod(w.shape) else "there are no elements"


def quantized_matmul(x: Any, w: Any) -> Any:
    import mlx.core as mx

    return mx.quantized_matmul(
        x, w.packed, w.scales, w.biases, transpose=True, group_size=w.group_size, bits=w.bits, mode=w.mode
    )


def multiplies(x: Any, w: Any, **static: Any) -> str:
    if not x.size or not math.prod(w.shape):
        return "there are no elements"
    return "scales have another dtype" if w.mode == "affine" and w.scales.dtype != x.dtype else ""


def _derivative(op: str, run: Function) -> Kernel:
    """In float32 alone: in half precision MLX rounds inside, and adds the rows' gradients of a weight in it."""
    name = f"mx.fast.{op}, vjp"
    return _fast(f"{op}_backward", _gradients(run), name, accepts=same_dtypes_backward, dtypes=("float32",))


def _wide_enough(backend: str) -> dict[str, Any]:
    """MLX's CPU adds products, and reduces logits, in half precision; its GPUs in float32."""
    if backend == "cpu":
        return {"devices": ("cpu",), "dtypes": ("float32",)}
    return {"devices": ("gpu",)}


def _per_device(op: str, run: Function, name: str, accepts: Callable[..., str]) -> list[Kernel]:
    def record(device: str) -> Kernel:
        known = name if device == "gpu" else f"{name} (cpu)"
        return _fast(op, run, known, accepts=accepts, priority=1, **_wide_enough(device))

    return [record("gpu"), record("cpu")]


KERNELS = (
    _fast("rms_norm", rms_norm, accepts=same_dtype),
    _derivative("rms_norm", rms_norm),
    _fast("layer_norm", layer_norm, accepts=same_dtype),
    _derivative("layer_norm", layer_norm),
    _fast("attention", attention.attention, "mx.fast.scaled_dot_product_attention", accepts=attention.takes),
    _fast(
        "attention_backward",
        attention.attention_backward,
        "mx.fast.scaled_dot_product_attention, vjp",
        accepts=attention.backward_takes,
        dtypes=("float32",),
    ),
    _fast("quantize", quantize, "mx.quantize", accepts=quantizes),
    _fast("dequantize", dequantize, "mx.dequantize", accepts=dequantizes),
    *_per_device("softmax_cross_entropy", cross_entropy, "mx.fast.cross_entropy", plain_loss),
    *_per_device("quantized_matmul", quantized_matmul, "mx.quantized_matmul", multiplies),
)
