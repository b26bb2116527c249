"""Keys and values of the tokens a decoder has read: capacity is fixed, so that a step is one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import ops
from m2ml.models.decoder_config import DecoderConfig
from m2ml.ops import Quantized

Array = jax.Array

#: Bits and group size of a quantised cache.
BITS, GROUP_SIZE = 8, 32


@functools.partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=("window",))
@dataclass(frozen=True)
class LayerCache:
    """Keys and values ``[batch, capacity, kv_heads, head_dim]`` of one layer, arrays or `Quantized` in their last axis.

    With ``window`` it is a ring: position ``p`` stands at ``p % window``, and the capacity is the window. Without, it
    stands at ``p``.
    """

    keys: Any
    values: Any
    window: int | None = None

    @property
    def room(self) -> int:
        """How many positions it holds."""
        size: int = jax.tree.leaves(self.keys)[0].shape[1]
        return size

    def attend(
        self, q: Array, k: Array, v: Array, starts: Array, counts: Array, asked: Array, /, **static: Any
    ) -> tuple[Array, LayerCache]:
        """Attention of ``q`` over what is held and over ``k`` and ``v [b, t, g, d]``, which are kept.

        Row ``i`` goes on at position ``starts[i]``; its first ``counts[i]`` tokens are real, the rest padding. ``q`` is
        ``[b, n, h, d]``, queries of neighbouring positions ``asked[b, n]`` among them.
        """
        if self.window is not None:
            return self._attend_in_ring(q, k, v, starts, counts, asked, **static)
        held = replace(self, keys=_written(self.keys, k, starts), values=_written(self.values, v, starts))
        every = _plain(held.keys, q.dtype), _plain(held.values, q.dtype)
        return ops.attention(q, *every, None, asked[:, -1] + 1, causal=True, **static), held

    def _attend_in_ring(
        self, q: Array, k: Array, v: Array, starts: Array, counts: Array, asked: Array, /, **static: Any
    ) -> tuple[Array, LayerCache]:
        """The ring as it was, then the new tokens: a chunk may overwrite what its own first queries still read."""
        size, length = self.window or 0, k.shape[1]
        static.pop("window")  # what the ring holds is the window, in any order
        new = starts[:, None] + jnp.arange(length)
        if length == 1:
            held = self._with(k, v, new % size, counts)
            every = _plain(held.keys, q.dtype), _plain(held.values, q.dtype)
            return ops.attention(q, *every, None, jnp.minimum(starts + 1, size), **static), held
        before = starts[:, None] - 1 - (starts[:, None] - 1 - jnp.arange(size)) % size  # position in each place
        positions = jnp.concatenate([jnp.where(starts[:, None] > 0, before, -1), new], axis=1)
        query, key = asked[:, None, :, None], positions[:, None, None, :]
        mask = (key >= 0) & (key <= query) & (key > query - size)
        every_k = jnp.concatenate([_plain(self.keys, q.dtype), k], axis=1)
        every_v = jnp.concatenate([_plain(self.values, q.dtype), v], axis=1)
        out = ops.attention(q, every_k, every_v, mask, **static)
        return out, self._with(k, v, new % size, counts)

    def _with(self, k: Array, v: Array, places: Array, counts: Array) -> LayerCache:
        """The ring with the last real tokens of ``k`` and ``v`` in their ``places [b, t]``."""
        size, (batch, length) = self.window or 0, places.shape
        if batch == length == 1:  # one row has no padding
            keys, values = _written(self.keys, k, places[:, 0]), _written(self.values, v, places[:, 0])
            return replace(self, keys=keys, values=values)
        step = jnp.arange(length)
        last = (step < counts[:, None]) & (step >= counts[:, None] - size)
        rows, places = jnp.arange(batch)[:, None], jnp.where(last, places, size)  # beyond the end they are dropped
        keys, values = _scattered(self.keys, k, rows, places), _scattered(self.values, v, rows, places)
        return replace(self, keys=keys, values=values)


def _plain(x: Any, dtype: Any) -> Array:
    return ops.dequantize(x, dtype=dtype) if isinstance(x, Quantized) else x.astype(dtype)


def _stored(held: Any, new: Array) -> Any:
    """``new`` in the form in which ``held`` is kept."""
    if isinstance(held, Quantized):
        found: Quantized = ops.quantize(new.astype(held.scales.dtype), bits=held.bits, group_size=held.group_size)
        return found
    return new.astype(held.dtype)


def _written(held: Any, new: Array, starts: Array) -> Any:
    """``held`` with ``new [b, t, ...]`` from ``starts[i]`` on in each row."""
    if new.shape[0] == 1:

        def write(x: Array, y: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, y, starts[0], 1)
    else:

        def write(x: Array, y: Array) -> Array:
            places = starts[:, None] + jnp.arange(y.shape[1])
            return x.at[jnp.arange(len(y))[:, None], places].set(y, mode="drop", unique_indices=True)

    return jax.tree.map(write, held, _stored(held, new))


def _scattered(held: Any, new: Array, rows: Array, places: Array) -> Any:
    return jax.tree.map(lambda x, y: x.at[rows, places].set(y, mode="drop"), held, _stored(held, new))


@functools.partial(jax.tree_util.register_dataclass, data_fields=("layers", "lengths"), meta_fields=())
@dataclass(frozen=True)
class KVCache:
    """A `LayerCache` for each layer, and how many tokens each row has read, int32 ``lengths[batch]``."""

    layers: tuple[LayerCache, ...]
    lengths: Any


def make_cache(config: DecoderConfig, batch: int, capacity: int, *, bits: int | None = None) -> KVCache:
    """An empty cache for ``capacity`` tokens per row, as NumPy zeros; ``bits`` is 8 for a quantised one.

    Layers with a window hold that many tokens only.
    """
    if bits not in (None, BITS):
        raise ValueError(f"make_cache: bits must be 8 or None; got {bits}")
    dtype = jnp.dtype(config.dtype)

    def empty(places: int) -> Any:
        shape = (batch, places, config.kv_heads, config.head_dim)
        return np.zeros(shape, dtype) if bits is None else _empty_quantized(shape, dtype)

    def layer(window: int | None) -> LayerCache:
        ring = window if window is not None and window < capacity else None
        return LayerCache(empty(ring or capacity), empty(ring or capacity), ring)

    return KVCache(tuple(layer(block.window) for block in config.blocks), np.zeros(batch, np.int32))


def _empty_quantized(shape: Sequence[int], dtype: Any) -> Quantized:
    *rows, n = shape
    if n % GROUP_SIZE:
        raise ValueError(f"make_cache: a cache of 8 bits needs heads of a multiple of {GROUP_SIZE}; got {n}")
    scales = np.zeros((*rows, n // GROUP_SIZE), dtype)
    return Quantized(np.zeros((*rows, n * BITS // 32), np.uint32), scales, scales.copy(), BITS, GROUP_SIZE)


def grown(cache: KVCache, config: DecoderConfig, capacity: int) -> KVCache:
    """``cache`` with room for ``capacity`` tokens: what is held stays, rings that become long enough stay rings.

    A layer with a window becomes a ring when the capacity passes it; its positions from 0 stand where a ring has them.
    """

    def layer(held: LayerCache, window: int | None) -> LayerCache:
        if held.window is not None:
            return held
        ring = window if window is not None and window < capacity else None
        places = ring or capacity

        def longer(x: Array) -> Array:
            return jnp.pad(x, [(0, 0), (0, places - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

        return LayerCache(jax.tree.map(longer, held.keys), jax.tree.map(longer, held.values), ring)

    windows = [block.window for block in config.blocks]
    return replace(cache, layers=tuple(map(layer, cache.layers, windows)))


def capacity_of(cache: KVCache) -> int | None:
    """Tokens that fit; None where every layer is a ring, which has no end."""
    return min((layer.room for layer in cache.layers if layer.window is None), default=None)
