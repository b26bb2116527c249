"""A decoder-only transformer in one implementation, from gpt2 and llama to gemma3 and mixtures of experts.

What families differ in is in `DecoderConfig`; how a checkpoint of each is read in `m2ml.models.architectures`.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m2ml import ops
from m2ml.models.decoder_config import DecoderConfig, LayerConfig, Rope
from m2ml.models.experts import Experts
from m2ml.models.functional import repeated, traced_once
from m2ml.models.kv_cache import KVCache, LayerCache
from m2ml.models.projection import Linear, Table, gate_and_up, value_of

Array = jax.Array

#: Of so few tokens the last layer works on all: another form of it would take longer to compile and load than it saves.
_FEW = 64


class Norm(nnx.Module):
    """The norm that the configuration names, over the last axis. ``x[*b, features] -> same``."""

    def __init__(self, config: DecoderConfig, features: int) -> None:
        self.config = config
        fill = jnp.zeros if config.norm == "rms_plus_one" else jnp.ones
        self.weight = nnx.Param(fill((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32)) if config.norm == "layer" else None

    def __call__(self, x: Array, /) -> Array:
        weight, eps = value_of(self.weight).astype(x.dtype), self.config.norm_eps
        if self.config.norm == "rms_plus_one":
            weight = (1 + value_of(self.weight).astype(jnp.float32)).astype(x.dtype)
        if self.bias is None:
            normal: Array = ops.rms_norm(x, weight, eps=eps)
        else:
            normal = ops.layer_norm(x, weight, value_of(self.bias).astype(x.dtype), eps=eps)
        return normal


class Attention(nnx.Module):
    """Causal self-attention with grouped heads. ``x[b, t, embed] -> same``, and what is kept of it.

    With ``only``, int32 ``[b, 1]``, the result is that of one token of each row, ``[b, 1, embed]``.
    """

    def __init__(self, config: DecoderConfig, block: LayerConfig, *, rngs: nnx.Rngs) -> None:
        self.config, self.block = config, block
        rows = config.qkv_rows
        self.qkv = Linear(config.embed_dim, sum(rows), bias=config.qkv_bias, rngs=rngs)
        self.out = Linear(rows[0], config.embed_dim, bias=config.out_bias, rngs=rngs)
        features = (config.head_dim,) * 2 if config.qk_norm == "head" else rows[:2]
        self.q_norm, self.k_norm = (Norm(config, n) if config.qk_norm else None for n in features)

    def __call__(
        self, x: Array, starts: Array, counts: Array, cache: LayerCache | None, only: Array | None
    ) -> tuple[Array, LayerCache | None]:
        config, (batch, length, _) = self.config, x.shape
        rows = np.cumsum(config.qkv_rows)[:2]
        q, k, v = jnp.split(self.qkv(x), rows, axis=-1)
        q, k = self._normal(self.q_norm, q), self._normal(self.k_norm, k)
        v = v.reshape(batch, length, config.kv_heads, config.head_dim)
        positions = asked = starts[:, None] + jnp.arange(length)
        if only is not None:
            q, asked = _at(q, only), starts[:, None] + only
        if self.block.rope:
            room = length if cache is None else cache.room
            q, k = (_turned(x, p, self.block.rope, room) for x, p in ((q, asked), (k, positions)))
        static = {
            "window": self.block.window,
            "scale": config.attention_scale,
            "soft_cap": config.attention_soft_cap,
        }
        if cache is None:
            mixed = ops.attention(q, k, v, causal=True, **static)
        else:
            mixed, cache = cache.attend(q, k, v, starts, counts, asked, **static)
        return self.out(mixed.reshape(*mixed.shape[:2], -1)), cache

    def _normal(self, norm: Norm | None, x: Array) -> Array:
        """``x[b, t, heads * dim]`` as ``[b, t, heads, dim]``, normalised as the configuration says."""
        heads = (*x.shape[:-1], x.shape[-1] // self.config.head_dim, self.config.head_dim)
        if norm is not None and self.config.qk_norm == "all":
            return norm(x).reshape(heads)
        return x.reshape(heads) if norm is None else norm(x.reshape(heads))


def _at(x: Array, places: Array) -> Array:
    """``x[b, t, ...]`` at one place of each row, ``places[b, 1]``."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def _turned(x: Array, positions: Array, rope: Rope, room: int) -> Array:
    """``room`` is the most tokens that there may be: what a longrope model reads by does not change on the way."""
    frequencies = ops.rope_frequencies(rope.dims, rope.base, dict(rope.scaling) or None)
    inverse = frequencies.inverse / np.array(rope.factors_for(room) or (1,), np.float32)
    turned: Array = ops.rope(x, positions, jnp.asarray(inverse), magnitude=frequencies.magnitude * rope.magnitude)
    return turned


class MLP(nnx.Module):
    """``down(activation(gate) * up)``, or ``down(activation(up))`` where it is not gated."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        wide = config.mlp_dim * (2 if config.gated else 1)
        self.up = Linear(config.embed_dim, wide, bias=config.mlp_bias, rngs=rngs)
        self.down = Linear(config.mlp_dim, config.embed_dim, bias=config.mlp_bias, rngs=rngs)

    def __call__(self, x: Array, /) -> Array:
        return self.down(gate_and_up(self.up(x), self.config))


class Block(nnx.Module):
    """One layer: attention and MLP, each added to what it read; with ``only``, of one token of each row."""

    def __init__(self, config: DecoderConfig, block: LayerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention = Attention(config, block, rngs=rngs)
        self.mlp = Experts(config, rngs=rngs) if block.sparse else MLP(config, rngs=rngs)
        self.attention_norm, self.mlp_norm = (
            Norm(config, config.embed_dim) if config.pre_norms else None for _ in range(2)
        )
        self.attention_post_norm, self.mlp_post_norm = (
            Norm(config, config.embed_dim) if config.post_norms else None for _ in range(2)
        )

    def __call__(
        self, x: Array, starts: Array, counts: Array, cache: LayerCache | None, only: Array | None = None
    ) -> tuple[Array, LayerCache | None]:
        mixed, cache = self.attention(_apply(self.attention_norm, x), starts, counts, cache, only)
        x = x if only is None else _at(x, only)
        mixed = _apply(self.attention_post_norm, mixed)
        if self.config.parallel:
            return x + mixed + self.mlp(_apply(self.mlp_norm, x)), cache
        x = x + mixed
        return x + _apply(self.mlp_post_norm, self.mlp(_apply(self.mlp_norm, x))), cache


def _apply(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class Decoder(nnx.Module):
    """Logits of the next token at every position.

    ``tokens int32[b, t] -> float32[b, t, vocab]``. With a cache, row ``i`` goes on where its cache ends, only its first
    ``counts[i]`` tokens are real, and the result is ``(logits, cache)``. `hidden` and `logits` are its two halves.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from m2ml.models import Decoder, DecoderConfig, LayerConfig, Rope
    >>> blocks = (LayerConfig(rope=Rope(8)),) * 2
    >>> config = DecoderConfig(11, 16, heads=2, kv_heads=1, head_dim=8, mlp_dim=24, context=64, blocks=blocks)
    >>> Decoder(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 5), jnp.int32)).shape
    (2, 5, 11)
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.tokens = Table(config.vocab_size, config.embed_dim, rngs=rngs)
        self.positions = Table(config.context, config.embed_dim, rngs=rngs) if config.learned_positions else None
        self.blocks = repeated(functools.partial(Block, config), config.blocks, rngs=rngs)
        self.norm = Norm(config, config.embed_dim)
        self.head = None if config.tied else Linear(config.embed_dim, config.vocab_size, bias=False, rngs=rngs)

    def __call__(self, tokens: Array, cache: KVCache | None = None, /, *, counts: Array | None = None) -> Any:
        x, cache = self.hidden(tokens, cache, counts=counts)
        return self.logits(x) if cache is None else (self.logits(x), cache)

    def newest(self, tokens: Array, cache: KVCache, /, *, counts: Array) -> tuple[Array, KVCache | None]:
        """`hidden` of the last real token of each row alone, ``[b, embed]``: the last layer works on no others."""
        x, held = self.hidden(tokens, cache, counts=counts, only=jnp.maximum(counts - 1, 0)[:, None])
        return x[:, 0], held

    def hidden(
        self,
        tokens: Array,
        cache: KVCache | None = None,
        /,
        *,
        counts: Array | None = None,
        only: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """What the last norm gives at every position, ``[b, t, embed]``, and the cache with these tokens in it.

        With ``only`` and a cache, at one place of each row, ``only[b, 1]``.
        """
        batch, length = tokens.shape
        starts = jnp.zeros(batch, jnp.int32) if cache is None else cache.lengths
        counts = jnp.full(batch, length, jnp.int32) if counts is None else counts
        x = self._embedded(tokens, starts)
        early, late = (only, None) if length > _FEW else (None, only)
        held: list[Any] = []
        for i, block in enumerate(self.blocks):
            last = (early,) if early is not None and i == len(self.blocks) - 1 else ()
            x, layer = traced_once(block, x, starts, counts, None if cache is None else cache.layers[i], *last)
            held.append(layer)
        if cache is not None:
            cache = replace(cache, layers=tuple(held), lengths=starts + counts)
        return self.norm(x if late is None or length == 1 else _at(x, late)), cache

    def _embedded(self, tokens: Array, starts: Array) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        x = self.tokens(tokens, dtype)
        if self.config.embed_scale != 1:
            x = x * jnp.asarray(self.config.embed_scale, dtype)
        if self.positions is not None:
            x = x + self.positions(starts[:, None] + jnp.arange(tokens.shape[1]), dtype)
        return x

    def logits(self, x: Array) -> Array:
        """float32 logits ``[*b, vocab]`` of what `hidden` gave."""
        logits = (self.tokens.attend(x) if self.head is None else self.head(x)).astype(jnp.float32)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
