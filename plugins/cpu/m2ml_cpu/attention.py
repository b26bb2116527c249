"""Attention in C++: what its handlers are told, and what they do not take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Function = Callable[..., Any]


def _batched(x: Any, axes: int) -> Any:
    """``x`` with its leading axes as one; the last ``axes`` stay."""
    return x.reshape(math.prod(x.shape[: x.ndim - axes]), *x.shape[x.ndim - axes :])


def _mask(mask: Any) -> Any:
    """A mask as ``[b or 1, h or 1, t or 1, s or 1]``, bytes or float32."""
    mask = mask if mask.dtype == np.bool_ else mask.astype(np.float32)
    mask = mask.reshape(*(1,) * (3 - mask.ndim), *mask.shape)
    return _batched(mask, 3)


def mask_fits(mask: Any, batch: Sequence[int]) -> bool:
    """Whether the leading axes of a mask are all of the batch or none of it."""
    leading = tuple(mask.shape[:-3])
    return math.prod(leading) == 1 or leading == tuple(batch)


def _rest(mask: Any, key_lengths: Any) -> list[Any]:
    found = [] if mask is None else [_mask(mask)]
    return found if key_lengths is None else [*found, key_lengths.astype(np.int32).reshape(-1)]


def _attributes(q: Any, mask: Any, key_lengths: Any, static: Any) -> dict[str, Any]:
    kind = 0 if mask is None else 1 if mask.dtype == np.bool_ else 2
    scale = q.shape[-1] ** -0.5 if static["scale"] is None else static["scale"]
    integers = {
        "causal": static["causal"],
        "placed": static["offset"] is not None,
        "offset": static["offset"] or 0,
        "window": static["window"] or 0,
        "mask": kind,
        "lengths": key_lengths is not None,
    }
    numbers = {"scale": scale, "soft_cap": static["soft_cap"] or 0.0}
    return {k: np.int64(v) for k, v in integers.items()} | {k: np.float32(v) for k, v in numbers.items()}


def takes(q: Any, k: Any, v: Any, mask: Any = None, key_lengths: Any = None, **static: Any) -> str:
    if len({np.dtype(x.dtype) for x in (q, k, v)}) > 1:
        return "q, k and v have different dtypes"
    if mask is not None and not mask_fits(mask, q.shape[:-3]):
        return "the mask is broadcast over some of several batch axes"
    return "" if q.shape[-1] else "d is 0"


def attention(call: Function) -> Function:
    def forward(q: Any, k: Any, v: Any, mask: Any, key_lengths: Any, **static: Any) -> Any:
        batch, (t, h, _) = q.shape[:-3], q.shape[-3:]
        arrays = [*(_batched(x, 3) for x in (q, k, v)), *_rest(mask, key_lengths)]
        count = math.prod(batch)
        types = (
            jax.ShapeDtypeStruct((count, t, h, v.shape[-1]), q.dtype),
            jax.ShapeDtypeStruct((count, t, h), np.float32),
        )
        out, lse = call(types, *arrays, **_attributes(q, mask, key_lengths, static))
        out = out.reshape(*batch, *out.shape[1:])
        return (out, lse.reshape(*batch, t, h)) if static["return_lse"] else out

    return forward


def backward_takes(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> str:
    if max(wrt) > 2:
        return "the gradient of a mask is asked for"
    return takes(*args)


def attention_backward(call: Function) -> Function:
    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        q, k, v, mask, key_lengths = args
        heads = [_batched(x, 3) for x in (q, k, v)]
        of_lse = [_batched(cotangents[1].astype(np.float32), 2)] if len(cotangents) > 1 else []
        saved = [_batched(outputs[0], 3), _batched(outputs[1], 2), _batched(cotangents[0], 3)]
        arrays = [*heads, *saved, *of_lse, *_rest(mask, key_lengths)]
        attributes = _attributes(q, mask, key_lengths, dict(static)) | {"of_lse": np.int64(bool(of_lse))}
        given = call([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in heads], *arrays, **attributes)
        return tuple(given[i].reshape((q, k, v)[i].shape) for i in wrt)

    return backward
