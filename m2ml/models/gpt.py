"""A small decoder-only transformer (Radford et al. 2019): pre-norm, learned positions, causal attention, GELU MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml import ops
from m2ml.models.functional import repeated
from m2ml.models.layers import LayerNorm, dropout, gelu, over_rows, split


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a `GPT`.

    ``context`` is the longest sequence, in tokens; ``mlp_dim`` defaults to four times ``embed_dim``; ``tied`` reuses
    the token embedding as output projection; ``dtype`` is what is computed in (parameters are always float32).
    Raises ValueError for sizes that do not fit together.
    """

    vocab_size: int
    context: int = 64
    layers: int = 2
    heads: int = 4
    embed_dim: int = 64
    mlp_dim: int | None = None
    dropout: float = 0.0
    tied: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "layers", "heads", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"GPTConfig: {name} must be at least 1; got {getattr(self, name)}")
        if self.embed_dim % self.heads:
            raise ValueError(
                f"GPTConfig: embed_dim must be a multiple of heads; got {self.embed_dim} for {self.heads} heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout must be at least 0 and below 1; got {self.dropout}")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.heads

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP."""
        return self.mlp_dim or 4 * self.embed_dim


def _linear(config: GPTConfig, outputs: int, rngs: nnx.Rngs, *, inputs: int = 0, scale: float = 1.0) -> nnx.Linear:
    return nnx.Linear(
        inputs or config.embed_dim,
        outputs,
        kernel_init=nnx.initializers.normal(0.02 * scale),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Causal self-attention: position ``q`` sees positions ``k <= q``. ``x[batch, length, embed] -> same``."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.qkv = _linear(config, 3 * config.embed_dim, rngs)
        self.out = _linear(config, config.embed_dim, rngs, scale=1 / math.sqrt(2 * config.layers))

    def __call__(self, x: jax.Array, /, *, key: jax.Array | None = None) -> jax.Array:
        config = self.config
        batch, length, _ = x.shape
        each = jnp.split(over_rows(self.qkv, x), 3, axis=-1)
        query, keys, values = (part.reshape(batch, length, config.heads, config.head_dim) for part in each)
        if key is None or config.dropout == 0:
            mixed = ops.attention(query, keys, values, causal=True)
        else:
            mixed = _attention_with_dropout(query, keys, values, rate=config.dropout, key=key)
        return over_rows(self.out, mixed.reshape(batch, length, config.embed_dim))


def _attention_with_dropout(
    query: jax.Array, keys: jax.Array, values: jax.Array, /, *, rate: float, key: jax.Array
) -> jax.Array:
    """Causal attention, some of whose weights are dropped: they have to exist for that."""
    length = query.shape[1]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys).astype(jnp.float32) / math.sqrt(query.shape[-1])
    visible = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    weights = dropout(weights.astype(query.dtype), rate=rate, key=key)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values)


class Block(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``. ``x[batch, length, embed] -> same``."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.attention_norm = LayerNorm(config.embed_dim)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(config.embed_dim)
        self.up = _linear(config, config.hidden_dim, rngs)
        scale = 1 / math.sqrt(2 * config.layers)
        self.down = _linear(config, config.embed_dim, rngs, inputs=config.hidden_dim, scale=scale)

    def __call__(self, x: jax.Array, /, *, key: jax.Array | None = None) -> jax.Array:
        rate = self.config.dropout
        weights_key, attention_key, mlp_key = split(key, 3)
        mixed = self.attention(self.attention_norm(x), key=weights_key)
        x = x + dropout(mixed, rate=rate, key=attention_key)
        mixed = over_rows(lambda rows: self.down(gelu(self.up(rows))), self.mlp_norm(x))
        return x + dropout(mixed, rate=rate, key=mlp_key)


class GPT(nnx.Module):
    """Logits of the next token at every position.

    ``tokens int32[batch, length] -> float32[batch, length, vocab]`` with ``length <= context``; ``key`` draws the
    dropout masks, and without one nothing is dropped. Raises ValueError for a longer sequence.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from m2ml.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=10, context=8, embed_dim=16), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 8), jnp.int32)).shape
    (2, 8, 10)
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        # Not 0.02 as elsewhere: layer norm's gradient grows as the inverse of its input, and the loss would spike.
        normal = nnx.initializers.normal(0.05)
        dtype = jnp.dtype(config.dtype)
        self.tokens = nnx.Embed(config.vocab_size, config.embed_dim, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(config.context, config.embed_dim, embedding_init=normal, dtype=dtype, rngs=rngs)
        self.blocks = repeated(Block, [config] * config.layers, rngs=rngs)
        self.norm = LayerNorm(config.embed_dim)
        self.head = None if config.tied else _linear(config, config.vocab_size, rngs)

    def __call__(self, tokens: jax.Array, /, *, key: jax.Array | None = None) -> jax.Array:
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"GPT: tokens are {length} long, but the context is {self.config.context}; shorten them")
        first, *keys = split(key, self.config.layers + 1)
        x = self.tokens(tokens) + self.positions(jnp.arange(length))
        x = dropout(x, rate=self.config.dropout, key=first)
        for block, block_key in zip(self.blocks, keys, strict=True):
            x = block(x, key=block_key)
        x = self.norm(x)
        logits = over_rows(self.tokens.attend if self.head is None else self.head, x)
        return logits.astype(jnp.float32)
