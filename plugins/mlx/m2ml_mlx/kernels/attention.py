"""Attention by `mx.fast.scaled_dot_product_attention`: what the op has and MLX lacks becomes a mask, or is declined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

#: Head dims for which MLX has a fused kernel on a GPU for few queries and for many: it takes half precision without
#: rounding scores. Elsewhere q, k and v are widened first.
FUSED = (64, 96, 128)
FUSED_PREFILL = (64, 80, 128)
FEW_QUERIES = 8

#: Where MLX has no fused derivative it keeps every score: this many are 256 MiB. The definition keeps a block of them.
MOST_SCORES = 1 << 26


def takes(q: Any, k: Any, v: Any, mask: Any = None, key_lengths: Any = None, **static: Any) -> str:
    if static["return_lse"] or static["soft_cap"] is not None:
        return "MLX's has no soft cap and gives no log-sum-exp"
    if len({x.dtype for x in (q, k, v)}) > 1:
        return "q, k and v have different dtypes"
    if not all(x.size for x in (q, k, v)):
        return "there are no queries, keys or dimensions"
    if mask is not None and math.prod(mask.shape[:-3]) != 1 and tuple(mask.shape[:-3]) != tuple(q.shape[:-3]):
        return "the mask is broadcast over some of several batch axes"
    return ""


def attention(q: Any, k: Any, v: Any, mask: Any = None, key_lengths: Any = None, **static: Any) -> Any:
    import mlx.core as mx

    batch = q.shape[:-3]
    heads_first = [x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2) for x in (q, k, v)]
    if not _fused(q, v, mask):
        heads_first = [x.astype(mx.float32) for x in heads_first]
    scale = q.shape[-1] ** -0.5 if static["scale"] is None else static["scale"]
    if _plain_causal(q, k, mask, key_lengths, **static):
        out = mx.fast.scaled_dot_product_attention(*heads_first, scale=scale, mask="causal")
    else:
        out = _masked(heads_first, scale, *_mask(q, k, mask, key_lengths, **static))
    return out.swapaxes(1, 2).reshape(*batch, q.shape[-3], q.shape[-2], v.shape[-1]).astype(q.dtype)


def backward_takes(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> str:
    q, k = args[:2]
    reason = takes(*args, **dict(static))
    if reason:
        return reason
    if max(wrt) > 2:
        return "MLX's fused derivative has none of a mask"
    scores = math.prod(q.shape[:-1]) * k.shape[-3]
    return f"{scores:,} scores may be kept" if scores > MOST_SCORES else ""


def attention_backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
    """By MLX's own derivative, which works out the forward pass again; what is masked goes round it, as there."""
    import mlx.core as mx

    def of_arrays(*arrays: Any) -> Any:
        return attention(*arrays, *args[3:], **dict(static))

    _, given = mx.vjp(of_arrays, list(args[:3]), list(cotangents))
    return tuple(given[i] for i in wrt)


def _fused(q: Any, v: Any, mask: Any) -> bool:
    """Whether MLX takes half precision without rounding scores, or a mask that is added to them."""
    import mlx.core as mx

    from m2ml_mlx.convert import on_gpu

    dims = FUSED if q.shape[-3] <= FEW_QUERIES else FUSED_PREFILL
    if q.dtype == mx.float32:
        return True
    unrounded = mask is None or mask.dtype == mx.bool_
    return unrounded and on_gpu() and mx.metal.is_available() and q.shape[-1] == v.shape[-1] in dims


def _plain_causal(q: Any, k: Any, mask: Any, key_lengths: Any, **static: Any) -> bool:
    """Whether the last query stands at the last key and every query reads one: MLX's own causal mask."""
    last = k.shape[-3] - q.shape[-3]
    alone = mask is None and key_lengths is None and static["window"] is None
    return bool(static["causal"]) and alone and last >= 0 and static["offset"] in (None, last)


def _mask(q: Any, k: Any, mask: Any, key_lengths: Any, **static: Any) -> tuple[Any, Any]:
    """What a query may read, ``[b, h, t, s]`` with ones for axes of which it is independent, and what is added."""
    import mlx.core as mx

    t, s = q.shape[-3], k.shape[-3]
    key, lengths, allowed = mx.arange(s), s, None
    if key_lengths is not None:
        lengths = key_lengths.astype(mx.int32).reshape(-1, 1, 1, 1)
        allowed = key < lengths
    offset = lengths - t if static["offset"] is None else static["offset"]
    place = mx.arange(t)[:, None] + offset
    found = [] if allowed is None else [allowed]
    if static["causal"]:
        found.append(key <= place)
    if static["window"] is not None:
        found += [key > place - static["window"], key < place + static["window"]]
    added = None
    if mask is not None:
        mask = mask.reshape(*(1,) * (3 - mask.ndim), *mask.shape)
        mask = mask.reshape(-1, *mask.shape[-3:])
        if mask.dtype == mx.bool_:
            found.append(mask)
        else:
            added = mask.astype(mx.float32)
            found.append(added != -mx.inf)
    every = None
    for one in found:
        every = one if every is None else every & one
    return every, added


def _masked(arrays: Any, scale: float, allowed: Any, added: Any) -> Any:
    """Attention where ``allowed``; a query that may read no key gives zeros, of which MLX knows nothing."""
    import mlx.core as mx

    if allowed is None:
        return mx.fast.scaled_dot_product_attention(*arrays, scale=scale)
    q, k, _ = arrays
    shape = *allowed.shape[:-2], q.shape[-2], k.shape[-2]
    allowed = mx.broadcast_to(allowed, shape)
    reads = mx.any(allowed, axis=-1, keepdims=True)
    mask = allowed | ~reads  # all keys for a query without any, so that no number is divided by zero
    if added is not None:
        mask = mx.where(reads, mx.where(allowed, added, -mx.inf), 0.0).astype(q.dtype)
    out = mx.fast.scaled_dot_product_attention(*arrays, scale=scale, mask=mask)
    return mx.where(reads, out, 0.0).astype(q.dtype)
