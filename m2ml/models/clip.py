"""CLIP: a tower that reads images and one that reads texts, whose vectors meet (Radford et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.family import Family, Theirs, layer_names, pair_of
from m2ml.models.layers import LayerNorm, of_length_one
from m2ml.models.patches import Pair, PatchEmbedding, in_order
from m2ml.models.projection import Linear, Table, value_of
from m2ml.models.settings import Settings
from m2ml.models.transformer import MOST_LAYERS, Transformer, TransformerConfig, activation_of

Array = jax.Array


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers of a `CLIP`, and the size of the vectors that they are projected to.

    ``end`` is the token that ends a text and stands for it; None takes the one with the largest number, as the first
    models do. ``dtype`` is what is computed in. Raises ValueError for an image smaller than a patch.
    """

    vocab_size: int
    context: int
    text: TransformerConfig
    image_size: Pair
    patch: Pair
    vision: TransformerConfig
    embed_dim: int
    end: int | None = None
    channels: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"CLIPConfig: image_size {self.image_size} is smaller than a patch of {self.patch}")

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]


class TextTower(nnx.Module):
    """``tokens int32[b, t] -> [b, embed]``: a causal transformer, at the token that ends the text."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed = config.text.embed_dim
        self.tokens = Table(config.vocab_size, embed, rngs=rngs)
        self.positions = Table(config.context, embed, rngs=rngs)
        self.layers = Transformer(config.text, rngs=rngs)
        self.norm = LayerNorm(embed, epsilon=config.text.norm_eps)
        self.projection = Linear(embed, config.embed_dim, bias=False, rngs=rngs)

    def __call__(self, tokens: Array, /) -> Array:
        config, length = self.config, tokens.shape[1]
        if length > config.context:
            raise ValueError(f"a text has {length} tokens, and this model reads {config.context}")
        dtype = jnp.dtype(config.dtype)
        x = self.tokens(tokens, dtype) + value_of(self.positions.weight)[:length].astype(dtype)
        x = self.layers(x)
        ends = jnp.argmax(tokens if config.end is None else tokens == config.end, axis=1)
        return self.projection(self.norm(jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]))


class VisionTower(nnx.Module):
    """``images[b, height, width, channels] -> [b, embed]``: a vision transformer, at its first vector."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed, eps = config.vision.embed_dim, config.vision.norm_eps
        self.patches = PatchEmbedding(config.patch, config.channels, embed, bias=False, rngs=rngs)
        self.first = nnx.Param(jnp.zeros((embed,), jnp.float32))
        self.positions = Table(1 + config.grid[0] * config.grid[1], embed, rngs=rngs)
        self.pre_norm, self.norm = LayerNorm(embed, epsilon=eps), LayerNorm(embed, epsilon=eps)
        self.layers = Transformer(config.vision, rngs=rngs)
        self.projection = Linear(embed, config.embed_dim, bias=False, rngs=rngs)

    def __call__(self, images: Array, /) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        x = self.patches(images.astype(dtype))
        grid = images.shape[1] // self.config.patch[0], images.shape[2] // self.config.patch[1]
        positions = value_of(self.positions.weight).astype(jnp.float32)
        x = in_order(x, value_of(self.first), positions, self.config.grid, grid)
        return self.projection(self.norm(self.layers(self.pre_norm(x))[:, 0]))


class CLIP(nnx.Module):
    """How well each text fits each image: ``(images[b, h, w, c], tokens int32[n, t]) -> float32[b, n]``.

    The logits are ``exp(logit_scale)`` times the cosines of `image_vectors` and `text_vectors`.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.text, self.vision = TextTower(config, rngs=rngs), VisionTower(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(self, images: Array, tokens: Array, /) -> Array:
        scale = jnp.exp(value_of(self.logit_scale).astype(jnp.float32))
        return scale * self.image_vectors(images) @ self.text_vectors(tokens).T

    def image_vectors(self, images: Array, /) -> Array:
        """One vector of length 1 for each image, float32 ``[b, embed]``."""
        return of_length_one(self.vision(images))

    def text_vectors(self, tokens: Array, /) -> Array:
        """One vector of length 1 for each text, float32 ``[n, embed]``."""
        return of_length_one(self.text(tokens))


def _clip(s: Settings) -> CLIPConfig:
    text, vision = s.part("text_config"), s.part("vision_config")
    end = int(text.number("eos_token_id", 49407))
    return CLIPConfig(
        vocab_size=text.integer("vocab_size", 49408),
        context=text.integer("max_position_embeddings", 77),
        text=_tower(text, 512, 2048, 8, causal=True),
        image_size=pair_of(vision, "image_size", 224),
        patch=pair_of(vision, "patch_size", 32),
        vision=_tower(vision, 768, 3072, 12),
        embed_dim=s.integer("projection_dim", 512),
        end=None if end == 2 else end,  # 2 is what the first configurations say, wrongly
        channels=vision.integer("num_channels", 3),
    )


def _tower(s: Settings, embed: int, mlp: int, heads: int, *, causal: bool = False) -> TransformerConfig:
    return TransformerConfig(
        embed_dim=s.integer("hidden_size", embed),
        heads=s.integer("num_attention_heads", heads),
        mlp_dim=s.integer("intermediate_size", mlp),
        layers=s.integer("num_hidden_layers", 12, most=MOST_LAYERS),
        norm_eps=s.number("layer_norm_eps", 1e-5),
        activation=activation_of(s, "hidden_act", "quick_gelu"),
        norm_first=True,
        causal=causal,
    )


_LAYER: dict[str, Theirs] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_NAMES: dict[str, Theirs] = {
    "logit_scale": "logit_scale",
    "text.tokens": "text_model.embeddings.token_embedding",
    "text.positions": "text_model.embeddings.position_embedding",
    "text.norm": "text_model.final_layer_norm",
    "text.projection": "text_projection",
    "vision.patches": "vision_model.embeddings.patch_embedding",
    "vision.first": "vision_model.embeddings.class_embedding",
    "vision.positions": "vision_model.embeddings.position_embedding",
    "vision.pre_norm": "vision_model.pre_layrnorm",
    "vision.norm": "vision_model.post_layernorm",
    "vision.projection": "visual_projection",
    **layer_names("text.layers.blocks.{}.", "text_model.encoder.layers.{}.", _LAYER),
    **layer_names("vision.layers.blocks.{}.", "vision_model.encoder.layers.{}.", _LAYER),
}

FAMILIES = {"clip": Family(CLIP, _clip, _NAMES, buffers=("embeddings.position_ids",))}
