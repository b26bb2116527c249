"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_integers, require_positive, wide
from m2ml.ops.attention_scores import Scores, mixed, rows_first, rows_last, weights_of
from m2ml.ops.inputs import normal

Array = jax.Array


@op(shapes="q[*b t h d], k[*b s g d], v[*b s g e], mask?[...], key_lengths?[*b] -> [*b t h e], [*b t h]")
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    /,
    *,
    causal: bool = False,
    offset: int | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """``softmax(scale * q @ k.T + mask) @ v`` per head (Vaswani et al., 2017).

    ``q`` is ``[*b, t, h, d]``, ``k`` ``[*b, s, g, d]`` and ``v`` ``[*b, s, g, e]``: heads come after the length, as
    a projection leaves them and as a cache grows, so that nothing is transposed (MLX and PyTorch have ``[b h t d]``).
    Query head ``i`` reads key head ``i // (h / g)``. The result is ``[*b, t, h, e]`` in ``q``'s dtype; half precision
    is worked out in float32 and rounded once. ``scale`` is ``1 / sqrt(d)`` unless given; with ``soft_cap`` a score is
    ``soft_cap * tanh(score / soft_cap)`` before any mask.

    What a query may read is what all of these allow:

    - ``mask``, broadcast to ``[*b, h, t, s]``: boolean, True where it may, or floating, added to the scores;
    - ``key_lengths``, integers ``[*b]`` from 0 to ``s``: keys from there on are padding;
    - ``causal``: keys up to the query's own position. Query ``i`` stands at ``i + offset``; unless given, ``offset``
      puts the last query at the last key (of its row), as MLX and FlashAttention do; PyTorch and JAX have 0;
    - ``window``: fewer than ``window`` keys away, one's own counted, on the left and, unless causal, on the right.

    A query that may read no key gives zeros. ``return_lse`` adds ``log(sum(exp(score)))``, ``[*b, t, h]`` in float32,
    -inf where no key is read: two results over parts of the keys can be joined by it. The gradient keeps that, not
    the scores, and works them out again for 512 queries at a time; a floating mask has a gradient too.
    """
    types(q, k, v, mask, key_lengths, window=window, soft_cap=soft_cap)
    scores = Scores.of(q, k, causal=causal, offset=offset, window=window, soft_cap=soft_cap, scale=scale)
    every = scores.filled_up(q), None if mask is None else scores.mask_filled_up(mask)

    def of_block(nothing: None, start: Any) -> tuple[None, tuple[Array, Array]]:
        queries, part = scores.block(every, start)
        weights, lse = weights_of(scores(queries, k, part, key_lengths, start))
        return nothing, (mixed(weights, v), rows_first(lse[..., None]))

    _, (out, lse) = scores.each(of_block, None)
    out, lse = out.astype(q.dtype), lse[..., 0]
    return (out, lse) if return_lse else out


@attention.give_types
def types(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    key_lengths: Any,
    *,
    window: int | None,
    soft_cap: float | None,
    return_lse: bool = False,
    **static: Any,
) -> Any:
    require_floating("attention", q=q, k=k, v=v)
    require_integers("attention", key_lengths=key_lengths)
    heads, groups = q.shape[-2], k.shape[-2]
    said = f"h is {heads} in q, which must be a multiple of g, {groups} in k; repeat or drop heads"
    require("attention", groups > 0 and heads % groups == 0, said)
    require("attention", window is None or window > 0, f"window is {window}; it must be at least 1 or None")
    if mask is not None:
        if mask.dtype != jnp.bool_:
            require_floating("attention", mask=mask)
        scores = (*q.shape[:-3], heads, q.shape[-3], k.shape[-3])
        fits = mask.ndim <= len(scores) and all(
            m in (1, n) for m, n in zip(mask.shape[::-1], scores[::-1], strict=False)
        )
        require("attention", fits, f"mask is {list(mask.shape)}, which does not broadcast to scores {list(scores)}")
    if soft_cap is not None:
        require_positive("attention", soft_cap=soft_cap)
    out = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype)
    added = () if mask is None or mask.dtype == jnp.bool_ else (mask.dtype,)
    lse = jax.ShapeDtypeStruct(q.shape[:-1], jnp.result_type(np.float32, q.dtype, k.dtype, *added))
    return (out, lse) if return_lse else out


@attention.defbackward(return_lse=True)
def backward(args: Any, outputs: Sequence[Any], cotangents: Sequence[Any], /, **static: Any) -> Any:
    """With weights ``p = exp(scores - lse)``: ``dv = p.T @ do``, ``ds = p * (do @ v.T - sum(p * (do @ v.T)) + dlse)``.

    The gradients of ``q``, ``k`` and a floating mask are those of the scores.
    """
    (q, k, v, mask, key_lengths), lse = args, outputs[1]
    scores, groups = Scores.of(q, k, **static), k.shape[-2]
    every = scores.filled_up(wide(q)), None if mask is None else scores.mask_filled_up(mask)
    learned = every[1] if every[1] is not None and every[1].dtype != jnp.bool_ else None
    of_lse = wide(cotangents[1]) if static["return_lse"] else jnp.zeros_like(lse)
    rows = [jnp.where(jnp.isfinite(lse), lse, 0)[..., None], of_lse[..., None], wide(cotangents[0])]
    rows = [scores.filled_up(x) for x in rows]

    def of_block(total: Any, start: Any) -> tuple[Any, Array]:
        saved, of_lse, of_out = (scores.block((x, None), start)[0] for x in rows)

        def score(q: Array, k: Array, learned: Array | None) -> Array:
            part = scores.block((every[0], every[1] if learned is None else learned), start)[1]
            return scores(q, k, part, key_lengths, start)

        found, of_score = jax.vjp(score, scores.block(every, start)[0], wide(k), learned)
        weights = jnp.exp(found - rows_last(saved, groups))
        d_weights, d_v = jax.vjp(mixed, weights, wide(v))[1](of_out)
        inner = jnp.sum(weights * d_weights, axis=-1, keepdims=True) - rows_last(of_lse, groups)
        d_q, d_k, d_mask = of_score(weights * (d_weights - inner))
        return jax.tree.map(jnp.add, total, (d_k, d_v, d_mask)), d_q

    start = jax.tree.map(jnp.zeros_like, (wide(k), wide(v), learned))
    (d_k, d_v, d_mask), d_q = scores.each(of_block, start)
    if d_mask is not None:
        d_mask = (d_mask if d_mask.shape[-2] == 1 else d_mask[..., : q.shape[-3], :]).reshape(mask.shape)
    return d_q, d_k, d_v, d_mask, None


@attention.give_cost
def cost(q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> tuple[int, int]:
    """Two products over the pairs of query and key that position allows; every array is moved once."""
    t, s, window = q.shape[-3], k.shape[-3], static.get("window") or math.inf
    offset = s - t if static.get("offset") is None else static["offset"]
    causal, pairs = static.get("causal", False), 0
    for place in range(offset, offset + t):
        last = min(s - 1, place if causal else place + window - 1)
        pairs += max(0, int(last - max(0, place - window + 1)) + 1)
    out = q.size // max(q.shape[-1], 1) * v.shape[-1]
    arrays = sum(x.size * x.dtype.itemsize for x in (q, k, v, *rest) if x is not None)
    per_pair = 2 * (q.shape[-1] + v.shape[-1])
    return q.size // max(q.shape[-1] * q.shape[-3], 1) * pairs * per_pair, arrays + out * q.dtype.itemsize


def _inputs(
    t: int, s: int, *, b: Sequence[int] = (), h: int = 1, g: int = 1, d: int = 4, e: int = 4, scale: float = 1.0
) -> tuple[Any, Any, Any]:
    seed = 7 * t + s + h
    shapes = ((*b, t, h, d), (*b, s, g, d), (*b, s, g, e))
    return normal(shapes[0], seed, scale), normal(shapes[1], seed + 1), normal(shapes[2], seed + 2)


@attention.give_samples
def samples() -> Iterator[Sample]:
    yield Sample("one of each", _inputs(1, 1, d=1, e=1))
    yield Sample("one key", _inputs(3, 1, d=2, e=2), {"return_lse": True})
    yield Sample("plain", _inputs(3, 5, b=(2,)))
    yield Sample("two leading axes, groups, e unlike d", _inputs(2, 3, b=(2, 1), h=4, g=2, d=3, e=5))
    yield Sample("one key head", _inputs(2, 4, h=3, d=2), {"causal": True})
    for d in (32, 64, 80, 256):
        yield Sample(f"d={d}", _inputs(3, 9, h=2, g=1, d=d, e=d), {"causal": d > 32})
    yield Sample("no batch", _inputs(2, 3, b=(0,)))
    yield Sample("no keys", _inputs(2, 0), {"return_lse": True})
    yield Sample("causal", _inputs(5, 5), {"causal": True})
    yield Sample("causal, more keys", _inputs(2, 7, b=(1,)), {"causal": True, "return_lse": True})
    yield Sample("causal, more queries", _inputs(5, 2), {"causal": True, "return_lse": True})
    yield Sample("causal from the start", _inputs(3, 6), {"causal": True, "offset": 0})
    yield Sample("causal, back", _inputs(4, 4), {"causal": True, "offset": -2})
    yield Sample("window", _inputs(6, 6), {"window": 2})
    yield Sample("causal window", _inputs(4, 9), {"window": 3, "causal": True})
    yield Sample("window from 3", _inputs(3, 9), {"window": 1, "offset": 3})
    yield Sample("soft cap", _inputs(3, 5, scale=4.0), {"soft_cap": 2.0, "causal": True, "return_lse": True})
    yield Sample("scale", _inputs(2, 5), {"scale": 1.7})
    yield Sample("large scores", _inputs(3, 5, scale=100.0), {"return_lse": True})
    yield Sample("small", _inputs(3, 5, scale=1e-6))
    lengths = np.array([2, 0, 5], np.int32)
    yield Sample("lengths", (*_inputs(3, 5, b=(3,)), None, lengths), {"return_lse": True})
    yield Sample("causal lengths", (*_inputs(2, 5, b=(3,), h=2), None, lengths), {"causal": True})
    static = {"causal": True, "offset": 0, "window": 2}
    yield Sample("lengths from the start", (*_inputs(5, 5, b=(3,)), None, lengths), static)
    some = np.random.default_rng(0).random((2, 1, 3, 5)) < 0.5
    some[0, 0, 1] = False
    yield Sample("boolean mask", (*_inputs(3, 5, b=(2,), h=2), some), {"return_lse": True})
    yield Sample("mask of keys", (*_inputs(3, 5, h=2), some[0, 0, :1]), {"causal": True})
    yield Sample("bias per head", (*_inputs(3, 5, h=4, g=2), normal((4, 3, 5), 3)), {"soft_cap": 3.0})
    bias = np.where(some, 0, -np.inf).astype(np.float32)
    yield Sample("bias and lengths", (*_inputs(3, 5, b=(2,)), bias, lengths[:2]), {"causal": True})


def _parts(op: Any, *args: Any, **static: Any) -> tuple[Any, Any]:
    out, lse = op(*args, **(static | {"return_lse": True}))
    return np.asarray(out, float), np.asarray(lse, float)


@attention.law
def equal_values_come_back(op: Any, q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> None:
    """The weights of a query sum to one, or to zero where it reads no key."""
    out, lse = _parts(op, q, k, np.full_like(v, 2), *rest, **static)
    wanted = np.where(np.isneginf(lse)[..., None], 0.0, 2.0)
    np.testing.assert_allclose(out, np.broadcast_to(wanted, out.shape), rtol=1e-5)


@attention.law
def a_causal_query_reads_no_later_key(op: Any, q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> None:
    """Of t queries and s keys, what stands behind key s - t is not seen by the first query."""
    t, s = q.shape[-3], k.shape[-3]
    static = static | {"causal": True, "offset": None}
    changed = np.concatenate([v[..., : s - t + 1, :, :], v[..., s - t + 1 :, :, :] + 1], -3) if s >= t else v
    out, other = (_parts(op, q, k, x, **static)[0] for x in (v, changed))
    np.testing.assert_array_equal(out[..., :1, :, :], other[..., :1, :, :])


@attention.law
def parts_of_the_keys_join_by_their_lse(op: Any, q: Any, k: Any, v: Any, *rest: Any, **static: Any) -> None:
    static = {name: value for name, value in static.items() if name in ("scale", "soft_cap")}
    half = (k.shape[-3] + 1) // 2
    out, lse = _parts(op, q, k, v, **static)
    parts = [_parts(op, q, k[..., x, :, :], v[..., x, :, :], **static) for x in (slice(half), slice(half, None))]
    joined = np.logaddexp(parts[0][1], parts[1][1])
    shares = [np.exp(part - np.where(np.isneginf(joined), 0, joined))[..., None] for _, part in parts]
    np.testing.assert_allclose(lse, joined, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, parts[0][0] * shares[0] + parts[1][0] * shares[1], rtol=1e-3, atol=1e-4)


@attention.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    """Scores 0 and log(3): the second key has three quarters; log(3) apart at half the scale, sqrt(3) parts."""
    q, k = np.full((1, 1, 4), np.log(3) / 2, np.float32), np.array([0, 1], np.float32).repeat(4).reshape(2, 1, 4)
    v = np.array([[[0.0, 8.0]], [[4.0, 0.0]]], np.float32)
    np.testing.assert_allclose(op(q, k, v), [[[3.0, 2.0]]], rtol=1e-5)
    np.testing.assert_allclose(op(q, k, v, scale=0.25)[..., 0], [[4 / (1 + 3**-0.5)]], rtol=1e-5)


def _wrong(**changed: Any) -> Any:
    """The definition with static arguments changed by functions of them all."""

    def fault(*args: Any, **static: Any) -> Any:
        new = {name: change(static, *args) for name, change in changed.items()}
        return attention.definition(*args, **(static | new))

    return fault


def _named(name: str, fault: Any) -> None:
    fault.__name__ = name
    attention.fault(fault)


_named("soft_cap_ignored", _wrong(soft_cap=lambda static, *_: None))
_named("window_ignored", _wrong(window=lambda static, *_: None))
_named("window_one_wider", _wrong(window=lambda static, *_: static["window"] and static["window"] + 1))
_named("causal_ignored", _wrong(causal=lambda static, *_: False))
_named("offset_from_the_start", _wrong(offset=lambda static, *_: static["offset"] or 0))
_named("offset_ignored", _wrong(offset=lambda static, *_: None))
_named("scale_ignored", _wrong(scale=lambda static, *_: None))
_named("scale_of_the_values", _wrong(scale=lambda static, q, k, v, *_: static["scale"] or v.shape[-1] ** -0.5))
_named("scale_missing", _wrong(scale=lambda static, *_: static["scale"] or 1.0))


@attention.fault
def reads_one_key_too_far(q: Array, k: Array, *rest: Any, **static: Any) -> Any:
    first = k.shape[-3] - q.shape[-3] if static["offset"] is None else static["offset"]
    return attention.definition(q, k, *rest, **(static | {"offset": first + 1}))


@attention.fault
def heads_interleaved(q: Array, k: Array, v: Array, *rest: Any, **static: Any) -> Any:
    """Head i reads key head i mod g."""
    times = q.shape[-2] // k.shape[-2]
    k, v = (jnp.concatenate([x] * times, axis=-2) for x in (k, v))
    return attention.definition(q, k, v, *rest, **static)


@attention.fault
def lengths_ignored(q: Array, k: Array, v: Array, mask: Any, key_lengths: Any, /, **static: Any) -> Any:
    return attention.definition(q, k, v, mask, None, **static)


@attention.fault
def mask_ignored(q: Array, k: Array, v: Array, mask: Any, key_lengths: Any, /, **static: Any) -> Any:
    return attention.definition(q, k, v, None, key_lengths, **static)


@attention.fault
def a_row_without_keys_reads_all(*args: Any, return_lse: bool, **static: Any) -> Any:
    """As a large negative number for minus infinity has it."""
    out, lse = attention.definition(*args, return_lse=True, **static)
    mean = jnp.mean(args[2], axis=(-3, -2), keepdims=True)
    out = jnp.where(jnp.isneginf(lse)[..., None], mean, out).astype(out.dtype)
    return (out, lse) if return_lse else out


@attention.fault
def lse_halved(*args: Any, return_lse: bool, **static: Any) -> Any:
    out, lse = attention.definition(*args, return_lse=True, **static)
    return (out, lse / 2) if return_lse else out


@attention.fault
def last_key_dropped(q: Array, k: Array, v: Array, mask: Any, key_lengths: Any, /, **static: Any) -> Any:
    end = k.shape[-3] - k.shape[-3] % 2 if k.shape[-3] > 1 else k.shape[-3]
    lengths = jnp.full(q.shape[:-3], end) if key_lengths is None else jnp.minimum(key_lengths, end)
    offset = static["offset"] if static["offset"] is not None or key_lengths is not None else k.shape[-3] - q.shape[-3]
    return attention.definition(q, k, v, mask, lengths, **(static | {"offset": offset}))


@attention.fault
def weights_not_normalised(*args: Any, return_lse: bool, **static: Any) -> Any:
    out, lse = attention.definition(*args, return_lse=True, **static)
    total = jnp.where(jnp.isneginf(lse), 1, 1 + 1e-4).astype(out.dtype)
    return (out * total[..., None], lse) if return_lse else out * total[..., None]


@attention.fault
def half_precision_scores(q: Array, *rest: Any, **static: Any) -> Any:
    return attention.definition(q.astype(jnp.bfloat16).astype(q.dtype), *rest, **static)
