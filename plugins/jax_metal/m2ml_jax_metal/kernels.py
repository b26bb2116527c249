"""Ops on a provider's own fused operations, where these meet the ops' contracts.

- jax-mps has custom calls (``mps.rms_norm``, ``mps.sdpa``, ...) that MLX's fused functions run; they are called through
  a primitive of our own, below the ops, whose rules for vmap and derivatives stay ours.
- metaljax recognises the textbook form of attention; the other definitions are in that form already.

Half precision is widened first: the contract is one rounding at the end.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import Kernel
from m2ml_jax_metal.providers import Provider

#: The provider in use: `Kernel.accepts` asks it.
_used: list[Provider] = []


def use(provider: Provider) -> None:
    """Let the kernels of ``provider`` accept calls; its platform is one that JAX knows by now."""
    _used[:] = [provider]
    if provider.distribution == "jax-mps":
        from jax.interpreters import mlir

        mlir.register_lowering(_call_p(), _lower, platform=provider.platform)


def _is_used(distribution: str) -> str:
    """Why a kernel of ``distribution`` declines every call, or ""."""
    return "" if _used and _used[0].distribution == distribution else f"{distribution} is not the provider here"


# A custom call of the provider --------------------------------------------------------------------------


@functools.cache
def _call_p() -> Any:
    """The primitive: ``out`` are the results' types, ``config`` the JSON text that goes with the call."""
    from jax.extend.core import Primitive

    from m2ml import compat

    primitive = Primitive("m2ml_provider_call")
    primitive.multiple_results = True
    primitive.def_abstract_eval(lambda *avals, out, **_: [compat.shaped_array(x) for x in out])
    return primitive


def _lower(ctx: Any, *operands: Any, target: str, config: str, out: Any) -> Any:
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo
    from jax.interpreters import mlir

    types = [ir.RankedTensorType.get(a.shape, mlir.dtype_to_ir_type(np.dtype(a.dtype))) for a in out]
    called = stablehlo.CustomCallOp(
        types,
        list(operands),
        call_target_name=ir.StringAttr.get(target),
        has_side_effect=ir.BoolAttr.get(False),
        backend_config=ir.StringAttr.get(config),
        api_version=ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 2),
        called_computations=ir.ArrayAttr.get([]),
    )
    return called.results


def provider_call(target: str, operands: Sequence[Any], out: Sequence[Any], **config: Any) -> list[Any]:
    """Call ``target`` with ``config`` on arrays; results have the shapes and dtypes of ``out``."""
    types = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out)
    return list(_call_p().bind(*operands, target=target, config=json.dumps(config), out=types))


# Norms --------------------------------------------------------------------------------------------------


def _wide(x: Any) -> Any:
    return x.astype(jnp.float32)


def _wide_or(x: Any, fill: float, like: Any) -> Any:
    return jnp.full(like.shape[-1:], fill, jnp.float32) if x is None else _wide(x)


def rms_norm(x: Any, weight: Any = None, *, eps: float) -> Any:
    return provider_call("mps.rms_norm", [_wide(x), _wide_or(weight, 1, x)], [_wide(x)], eps=eps)[0].astype(x.dtype)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    operands = [_wide(x), _wide_or(weight, 1, x), _wide_or(bias, 0, x)]
    return provider_call("mps.layer_norm", operands, [_wide(x)], eps=eps)[0].astype(x.dtype)


def _norm_backward(target: str, fills: Sequence[float]) -> Callable[..., Any]:
    """The backward op of a norm: the provider's call gives the gradients of ``x`` and of all its weights."""

    def backward(args: Any, outputs: Any, cotangents: Any, *, wrt: Sequence[int], static: Any) -> Any:
        x, *weights = args
        filled = [_wide_or(w, fill, x) for w, fill in zip(weights, fills, strict=True)]
        operands = [_wide(x), *filled]
        given = provider_call(target, [*operands, _wide(cotangents[0])], operands, eps=dict(static)["eps"])
        present = [(g, a) for g, a in zip(given, args, strict=True) if a is not None]
        return tuple(present[i][0].astype(present[i][1].dtype) for i in wrt)

    return backward


def _has_elements(x: Any, *rest: Any, **static: Any) -> str:
    return "" if math.prod(x.shape) else "there are no elements"


def _has_elements_backward(args: Any, outputs: Any, cotangents: Any, **static: Any) -> str:
    return _has_elements(*args)


# Attention ----------------------------------------------------------------------------------------------


def _plain(q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> str:
    if static["return_lse"] or static["soft_cap"] is not None:
        return "it has no soft cap and gives no log-sum-exp"
    return "" if all(math.prod(x.shape) for x in (q, k, v)) else "there are no queries, keys or dimensions"


def _plain_and_square(q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> str:
    return _plain(q, k, v, *rest, **static) or ("" if v.shape[-1] == q.shape[-1] else "v has another head dim than q")


def attention(q: Any, k: Any, v: Any, mask: Any = None, key_lengths: Any = None, **static: Any) -> Any:
    """``mps.sdpa`` takes ``[batch, heads, length, dim]``; its causal form runs where both its versions agree."""
    arrays = _heads_first(q, k, v)
    scale = float(q.shape[-1] ** -0.5 if static["scale"] is None else static["scale"])
    alone = mask is None and key_lengths is None and static["window"] is None
    if static["causal"] and alone and q.shape[-3] == k.shape[-3] and static["offset"] in (None, 0):
        return _heads_last(provider_call("mps.sdpa_causal", arrays, arrays[:1], scale=scale)[0], q, v)
    allowed, added = _what_may_be_read(q, k, mask, key_lengths, **static)
    reads = None if allowed is None else jnp.any(allowed, axis=-1, keepdims=True)
    given = _mask(allowed, added, reads)
    out = provider_call("mps.sdpa", [*arrays, given], arrays[:1], scale=scale)[0]
    return _heads_last(out if reads is None else jnp.where(reads, out, 0), q, v)


def _mask(allowed: Any, added: Any, reads: Any) -> Any:
    """True where a key may be read, or what is added to its score; a query that may read none reads all for now."""
    if allowed is None:
        return jnp.bool_(True)
    if added is None:
        return allowed | ~reads
    return jnp.where(reads, jnp.where(allowed, added, -jnp.inf), 0.0)


def textbook_attention(q: Any, k: Any, v: Any, mask: Any = None, key_lengths: Any = None, **static: Any) -> Any:
    """``softmax(scale q k^T, masked) v``, all scores at once."""
    queries, keys, values = _heads_first(q, k, v)
    scale = q.shape[-1] ** -0.5 if static["scale"] is None else static["scale"]
    scores = jnp.einsum("bhtd,bhsd->bhts", queries, keys) * scale
    allowed, added = _what_may_be_read(q, k, mask, key_lengths, **static)
    reads = None if allowed is None else jnp.any(allowed, axis=-1, keepdims=True)
    if added is not None:
        scores = scores + jnp.where(allowed, added, 0)
    if allowed is not None:
        scores = jnp.where(allowed | ~reads, scores, -jnp.inf)
    out = jnp.einsum("bhts,bhse->bhte", jax.nn.softmax(scores, axis=-1), values)
    return _heads_last(out if reads is None else jnp.where(reads, out, 0), q, v)


def _heads_first(q: Any, k: Any, v: Any) -> list[Any]:
    """``[batch, heads, length, dim]`` in float32, key heads repeated for their queries."""
    times = q.shape[-2] // k.shape[-2]
    first = [jnp.swapaxes(_wide(x).reshape(-1, *x.shape[-3:]), 1, 2) for x in (q, k, v)]
    return [first[0], *(jnp.repeat(x, times, axis=1) if times > 1 else x for x in first[1:])]


def _heads_last(out: Any, q: Any, v: Any) -> Any:
    return jnp.swapaxes(out, 1, 2).reshape(*q.shape[:-1], v.shape[-1]).astype(q.dtype)


def _what_may_be_read(q: Any, k: Any, mask: Any, key_lengths: Any, **static: Any) -> tuple[Any, Any]:
    """What a query may read, ``[b, h, t, s]`` with ones where it is independent of an axis, and what is added."""
    t, s = q.shape[-3], k.shape[-3]
    key, lengths, found = jnp.arange(s), s, []
    if key_lengths is not None:
        lengths = key_lengths.astype(jnp.int32).reshape(-1, 1, 1, 1)
        found.append(key < lengths)
    place = jnp.arange(t)[:, None] + (lengths - t if static["offset"] is None else static["offset"])
    if static["causal"]:
        found.append(key <= place)
    if static["window"] is not None:
        found += [key > place - static["window"], key < place + static["window"]]
    added = None
    if mask is not None:
        mask = _of_four_axes(mask, q, k)
        added = None if mask.dtype == jnp.bool_ else _wide(mask)
        found.append(mask if added is None else added != -jnp.inf)
    if not found:
        return None, None
    allowed = functools.reduce(jnp.logical_and, found)
    allowed = allowed.reshape(*(1,) * (4 - allowed.ndim), *allowed.shape)
    return jnp.broadcast_to(allowed, (*allowed.shape[:-2], t, s)), added


def _of_four_axes(mask: Any, q: Any, k: Any) -> Any:
    """A mask with all batch axes as one."""
    batch = q.shape[:-3]
    mask = mask.reshape(*(1,) * (len(batch) + 3 - mask.ndim), *mask.shape)
    if math.prod(mask.shape[: len(batch)]) != 1:
        mask = jnp.broadcast_to(mask, (*batch, *mask.shape[len(batch) :]))
    return mask.reshape(-1, *mask.shape[-3:])


# Quantised weights --------------------------------------------------------------------------------------

#: What jax-mps packs as `m2ml.ops.quantize` does.
_BITS = (4, 8)


def _packs(bits: int, group_size: int | None, mode: str) -> str:
    if mode != "affine" or bits not in _BITS:
        return f"it packs {' and '.join(map(str, _BITS))} bits, affine"
    return ""


def dequantize(w: Any, *, dtype: Any) -> Any:
    rows = [x.reshape(-1, x.shape[-1]) for x in (w.packed, _wide(w.scales), _wide(w.biases))]
    out = jax.ShapeDtypeStruct((rows[0].shape[0], w.shape[-1]), jnp.float32)
    (found,) = provider_call("mps.dequantize", rows, [out], group_size=w.group_size, bits=w.bits)
    return found.reshape(w.shape).astype(w.scales.dtype if dtype is None else dtype)


def _dequantizes(w: Any, **static: Any) -> str:
    return _packs(w.bits, w.group_size, w.mode) or ("" if math.prod(w.shape) else "there are no elements")


def quantized_matmul(x: Any, w: Any) -> Any:
    rows = _wide(x).reshape(-1, x.shape[-1])
    out = jax.ShapeDtypeStruct((rows.shape[0], w.packed.shape[-2]), jnp.float32)
    operands = [rows, w.packed, _wide(w.scales), _wide(w.biases)]
    (y,) = provider_call("mps.quantized_matmul", operands, [out], transpose=1, group_size=w.group_size, bits=w.bits)
    return y.reshape(*x.shape[:-1], out.shape[-1]).astype(x.dtype)


def _multiplies(x: Any, w: Any, **static: Any) -> str:
    return _dequantizes(w) or _has_elements(x)


# Records ------------------------------------------------------------------------------------------------


def _kernel(distribution: str, op: str, name: str, run: Callable[..., Any], accepts: Callable[..., str]) -> Kernel:
    def takes(*args: Any, **static: Any) -> str:
        return _is_used(distribution) or accepts(*args, **static)

    return Kernel(op, "jax_metal", name, lambda: run, accepts=takes, about=f"{distribution}'s own")


_mps = functools.partial(_kernel, "jax-mps")

KERNELS = (
    _mps("rms_norm", "mps.rms_norm", rms_norm, _has_elements),
    _mps("rms_norm_backward", "mps.rms_norm_bwd", _norm_backward("mps.rms_norm_bwd", (1,)), _has_elements_backward),
    _mps("layer_norm", "mps.layer_norm", layer_norm, _has_elements),
    _mps(
        "layer_norm_backward",
        "mps.layer_norm_bwd",
        _norm_backward("mps.layer_norm_bwd", (1, 0)),
        _has_elements_backward,
    ),
    _mps("attention", "mps.sdpa", attention, _plain_and_square),
    _mps("dequantize", "mps.dequantize", dequantize, _dequantizes),
    _mps("quantized_matmul", "mps.quantized_matmul", quantized_matmul, _multiplies),
    _kernel("metaljax", "attention", "textbook (metaljax)", textbook_attention, _plain),
)
