"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_integers, wide
from m2ml.ops.inputs import normal

Array = jax.Array

#: Queries whose scores exist at a time.
QUERIES = 512


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
    _check(q, k, v, mask, key_lengths, window)
    scores = _Scores.of(q, k, causal=causal, offset=offset, window=window, soft_cap=soft_cap, scale=scale)
    every = scores.filled_up(q), None if mask is None else scores.mask_filled_up(mask)

    def of_block(nothing: None, start: Any) -> tuple[None, tuple[Array, Array]]:
        queries, part = scores.block(every, start)
        weights, lse = _weights(scores(queries, k, part, key_lengths, start))
        return nothing, (_mixed(weights, v), _rows_first(lse[..., None]))

    _, (out, lse) = scores.each(of_block, None)
    out, lse = out.astype(q.dtype), lse[..., 0]
    return (out, lse) if return_lse else out


def _check(q: Array, k: Array, v: Array, mask: Array | None, key_lengths: Array | None, window: int | None) -> None:
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


@dataclass(frozen=True)
class _Scores:
    """Scores of queries, a block of them at a time, -inf where one may not read a key."""

    queries: int
    keys: int
    causal: bool
    offset: int | None
    window: int | None
    soft_cap: float | None
    scale: float

    @classmethod
    def of(
        cls,
        q: Any,
        k: Any,
        *,
        scale: float | None = None,
        causal: bool = False,
        offset: int | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        **_: Any,
    ) -> _Scores:
        """For queries and keys of these shapes and static arguments."""
        default = float(max(q.shape[-1], 1)) ** -0.5
        return cls(q.shape[-3], k.shape[-3], causal, offset, window, soft_cap, default if scale is None else scale)

    @property
    def rows(self) -> int:
        """Queries in a block."""
        return max(min(QUERIES, self.queries), 1)

    def each(self, function: Any, carried: Any) -> tuple[Any, Any]:
        """``function(carried, start) -> (carried, found)`` for each block; ``found[..., rows, heads, n]`` joined."""
        starts = range(0, max(self.queries, 1), self.rows)
        if len(starts) == 1:
            carried, found = function(carried, 0)
        else:
            carried, found = jax.lax.scan(function, carried, jnp.array(starts))
            found = jax.tree.map(lambda x: _join(jnp.moveaxis(x, 0, -4), -4), found)
        return carried, jax.tree.map(lambda x: x[..., : self.queries, :, :], found)

    def filled_up(self, x: Array, axis: int = -3) -> Array:
        """``x [..., t, h, n]`` with zeros after the last query, so that blocks are whole."""
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -self.queries % self.rows if self.queries else 1)
        return jnp.pad(x, padding)

    def mask_filled_up(self, mask: Array) -> Array:
        """``mask`` with axes for heads, queries and keys at least, filled up where it has each query's own."""
        mask = mask.reshape(*(1,) * (3 - mask.ndim), *mask.shape)
        return mask if mask.shape[-2] == 1 else self.filled_up(mask, -2)

    def block(self, every: tuple[Array, Array | None], start: Any) -> tuple[Array, Array | None]:
        """Queries and mask of the block that starts there, from all of them, filled up."""
        q, mask = every
        queries = jax.lax.dynamic_slice_in_dim(q, start, self.rows, q.ndim - 3)
        if mask is None or mask.shape[-2] == 1:
            return queries, mask
        return queries, jax.lax.dynamic_slice_in_dim(mask, start, self.rows, mask.ndim - 2)

    def __call__(self, q: Array, k: Array, mask: Array | None, key_lengths: Array | None, start: Any) -> Array:
        """``[*b, g, h / g, rows, s]`` of a block of queries and mask."""
        groups = k.shape[-2]
        scores = jnp.einsum("...tgrd,...sgd->...grts", _grouped(wide(q), groups), wide(k)) * self.scale
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        allowed = self._allowed(key_lengths, start)
        if mask is not None:
            heads = (groups, mask.shape[-3] // groups) if mask.shape[-3] > 1 else (1, 1)
            mask = mask.reshape(*mask.shape[:-3], *heads, *mask.shape[-2:])
            scores, allowed = (scores, allowed & mask) if mask.dtype == jnp.bool_ else (scores + mask, allowed)
        return jnp.where(allowed, scores, -jnp.inf)

    def _allowed(self, key_lengths: Array | None, start: Any) -> Array:
        key = jnp.arange(self.keys)
        lengths = self.keys if key_lengths is None else key_lengths[..., None, None, None, None]
        allowed = key < lengths
        place = (
            start + jnp.arange(self.rows)[:, None] + (lengths - self.queries if self.offset is None else self.offset)
        )
        if self.causal:
            allowed = allowed & (key <= place)
        if self.window is not None:
            allowed = allowed & (key > place - self.window) & (key < place + self.window)
        return allowed


def _join(x: Array, axis: int) -> Array:
    """``x`` with an axis and the next one as one."""
    shape = list(x.shape)
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return x.reshape(shape)


def _grouped(x: Array, groups: int) -> Array:
    """``[..., h, n]`` as ``[..., g, h / g, n]``."""
    return x.reshape(*x.shape[:-2], groups, x.shape[-2] // groups, x.shape[-1])


def _weights(scores: Array) -> tuple[Array, Array]:
    """The softmax of scores, zeros in a row without keys, and their log-sum-exp."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    powers = jnp.exp(scores - top)
    total = jnp.sum(powers, axis=-1)
    safe = jnp.where(total > 0, total, 1)
    return powers / safe[..., None], jnp.where(total > 0, jnp.log(safe) + top[..., 0], -jnp.inf)


def _mixed(weights: Array, v: Array) -> Array:
    """``weights @ v``, ``[*b, rows, h, e]``."""
    return _rows_first(jnp.einsum("...grts,...sge->...grte", weights, wide(v)))


def _rows_first(x: Array) -> Array:
    """``[..., g, h / g, rows, n]`` as ``[..., rows, h, n]``."""
    return _join(jnp.moveaxis(x, -2, -4), -3)


def _rows_last(x: Array, groups: int) -> Array:
    """``[..., rows, h, n]`` as ``[..., g, h / g, rows, n]``."""
    return jnp.moveaxis(_grouped(x, groups), -4, -2)


@attention.defbackward(return_lse=True)
def backward(args: Any, outputs: Sequence[Any], cotangents: Sequence[Any], /, **static: Any) -> Any:
    """With weights ``p = exp(scores - lse)``: ``dv = p.T @ do``, ``ds = p * (do @ v.T - sum(p * (do @ v.T)) + dlse)``.

    The gradients of ``q``, ``k`` and a floating mask are those of the scores.
    """
    (q, k, v, mask, key_lengths), lse = args, outputs[1]
    scores, groups = _Scores.of(q, k, **static), k.shape[-2]
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
        weights = jnp.exp(found - _rows_last(saved, groups))
        d_weights, d_v = jax.vjp(_mixed, weights, wide(v))[1](of_out)
        inner = jnp.sum(weights * d_weights, axis=-1, keepdims=True) - _rows_last(of_lse, groups)
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
