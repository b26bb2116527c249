"""The layer that encoders of text and of images share: attention and MLP with norms before or after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml import ops
from m2ml.models.functional import repeated
from m2ml.models.layers import LayerNorm
from m2ml.models.projection import Linear, value_of
from m2ml.models.settings import Settings
from m2ml.ops.activations import ACTIVATIONS

Array = jax.Array

#: Layers beyond this are a damaged file.
MOST_LAYERS = 1024

#: What transformers calls an activation -> its name here; CLIP's first models have ``x sigmoid(1.702 x)``.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a `Transformer`.

    ``norm_first``: norms stand before attention and MLP, as in ViT, rather than after the sum, as in BERT. ``gated``:
    the MLP is ``down(silu(gate) * up)``. ``layer_scale`` multiplies what each of both adds by a vector. ``causal``: a
    position reads those up to its own. Raises ValueError for what does not fit together.
    """

    embed_dim: int
    heads: int
    mlp_dim: int
    layers: int
    norm_eps: float = 1e-12
    activation: str = "gelu"
    norm_first: bool = False
    causal: bool = False
    gated: bool = False
    layer_scale: bool = False
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("embed_dim", "heads", "mlp_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"TransformerConfig: {name} must be at least 1; got {getattr(self, name)}")
        if self.embed_dim % self.heads:
            raise ValueError(
                f"TransformerConfig: embed_dim must be a multiple of heads; got {self.embed_dim} and {self.heads}"
            )


def activation_of(s: Settings, name: str, default: str = "gelu") -> str:
    """The activation that a configuration names. Raises `CheckpointError` for one that is not known."""
    value = s.get(name, default)
    if value not in _ACTIVATIONS:
        raise s.wrong(name, value, f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def activate(x: Array, name: str, /) -> Array:
    """The activation, in float32 for half precision."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ACTIVATIONS[name](wide).astype(x.dtype)


class Block(nnx.Module):
    """One layer. ``x[b, t, embed] -> same``; keys from ``lengths int32[b]`` on are padding."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed, mlp = config.embed_dim, config.mlp_dim
        self.attention_norm = LayerNorm(embed, epsilon=config.norm_eps)
        self.qkv = Linear(embed, 3 * embed, bias=config.qkv_bias, rngs=rngs)
        self.out = Linear(embed, embed, bias=True, rngs=rngs)
        self.mlp_norm = LayerNorm(embed, epsilon=config.norm_eps)
        self.up = Linear(embed, mlp * (2 if config.gated else 1), bias=True, rngs=rngs)
        self.down = Linear(mlp, embed, bias=True, rngs=rngs)
        self.attention_scale, self.mlp_scale = (
            nnx.Param(jnp.ones((embed,), jnp.float32)) if config.layer_scale else None for _ in range(2)
        )

    def __call__(self, x: Array, lengths: Array | None = None, /) -> Array:
        if self.config.norm_first:
            x = x + _scaled(self._attended(self.attention_norm(x), lengths), self.attention_scale)
            return x + _scaled(self._mlp(self.mlp_norm(x)), self.mlp_scale)
        x = self.attention_norm(x + self._attended(x, lengths))
        return self.mlp_norm(x + self._mlp(x))

    def _attended(self, x: Array, lengths: Array | None) -> Array:
        heads = (*x.shape[:-1], self.config.heads, -1)
        q, k, v = (part.reshape(heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        mixed = ops.attention(q, k, v, None, lengths, causal=self.config.causal, offset=0)
        return self.out(mixed.reshape(x.shape))

    def _mlp(self, x: Array) -> Array:
        if self.config.gated:
            gate, up = jnp.split(self.up(x), 2, axis=-1)
            return self.down(ops.swiglu(gate, up))
        return self.down(self.up(x, activation=self.config.activation))


def _scaled(x: Array, scale: Any) -> Array:
    return x if scale is None else x * value_of(scale).astype(x.dtype)


class Transformer(nnx.Module):
    """Layers one after the other. ``x[b, t, embed] -> same``; keys from ``lengths int32[b]`` on are padding."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.blocks = repeated(Block, [config] * config.layers, rngs=rngs)

    def __call__(self, x: Array, lengths: Array | None = None, /) -> Array:
        for block in self.blocks:
            x = block(x, lengths)
        return x
