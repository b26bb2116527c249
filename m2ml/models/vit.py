"""Vision transformers: vit and dinov2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.family import Family, Theirs, classes_of, layer_names, pair_of
from m2ml.models.layers import LayerNorm
from m2ml.models.patches import Pair, PatchEmbedding, in_order
from m2ml.models.projection import Linear, value_of
from m2ml.models.settings import Settings
from m2ml.models.transformer import MOST_LAYERS, Transformer, TransformerConfig, activation_of

Array = jax.Array


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer for images of ``image_size`` (height, width); others have their positions interpolated.

    ``classes`` is None where there is no classifier. It reads the first vector, and with ``head_reads_mean`` the mean
    of all patches' beside it. ``dtype`` is what is computed in. Raises ValueError for an image smaller than a patch.
    """

    image_size: Pair
    patch: Pair
    transformer: TransformerConfig
    channels: int = 3
    classes: int | None = None
    head_reads_mean: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"ViTConfig: image_size {self.image_size} is smaller than a patch of {self.patch}")

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]


class ViT(nnx.Module):
    """Logits of the classes of each image, or its features where there is no classifier.

    ``images float32[b, height, width, channels] -> float32[b, classes]``. `hidden` gives the vectors of all patches,
    `features` the first one, which stands for the image.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed = config.transformer.embed_dim
        self.patches = PatchEmbedding(config.patch, config.channels, embed, bias=True, rngs=rngs)
        self.first = nnx.Param(jnp.zeros((1, 1, embed), jnp.float32))
        self.positions = nnx.Param(jnp.zeros((1, 1 + config.grid[0] * config.grid[1], embed), jnp.float32))
        self.layers = Transformer(config.transformer, rngs=rngs)
        self.norm = LayerNorm(embed, epsilon=config.transformer.norm_eps)
        width = embed * (2 if config.head_reads_mean else 1)
        self.head = None if config.classes is None else Linear(width, config.classes, bias=True, rngs=rngs)

    def __call__(self, images: Array, /) -> Array:
        x = self.hidden(images)
        if self.head is None:
            return x[:, 0].astype(jnp.float32)
        read = jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=-1) if self.config.head_reads_mean else x[:, 0]
        return self.head(read).astype(jnp.float32)

    def hidden(self, images: Array, /) -> Array:
        """What the last norm gives: ``[b, 1 + patches, embed]``, the vector that stands for the image first."""
        dtype = jnp.dtype(self.config.dtype)
        x = self.patches(images.astype(dtype))
        grid = images.shape[1] // self.config.patch[0], images.shape[2] // self.config.patch[1]
        positions = value_of(self.positions).astype(jnp.float32)[0]
        return self.norm(self.layers(in_order(x, value_of(self.first), positions, self.config.grid, grid)))

    def features(self, images: Array, /) -> Array:
        """The vector that stands for each image, float32 ``[b, embed]``."""
        return self.hidden(images)[:, 0].astype(jnp.float32)


def _vit(s: Settings) -> ViTConfig:
    return _config(s, s.integer("intermediate_size", 3072))


def _dinov2(s: Settings) -> ViTConfig:
    width, gated = int(s.integer("hidden_size") * s.number("mlp_ratio", 4)), bool(s.get("use_swiglu_ffn", False))
    if gated:
        width = (int(width * 2 / 3) + 7) // 8 * 8
    return _config(s, width, gated=gated, layer_scale=True, head_reads_mean=True)


def _config(s: Settings, mlp_dim: int, *, head_reads_mean: bool = False, **more: Any) -> ViTConfig:
    transformer = TransformerConfig(
        embed_dim=s.integer("hidden_size"),
        heads=s.integer("num_attention_heads"),
        mlp_dim=mlp_dim,
        layers=s.integer("num_hidden_layers", most=MOST_LAYERS),
        norm_eps=s.number("layer_norm_eps", 1e-6),
        activation=activation_of(s, "hidden_act"),
        norm_first=True,
        qkv_bias=bool(s.get("qkv_bias", True)),
        **more,
    )
    return ViTConfig(
        image_size=pair_of(s, "image_size"),
        patch=pair_of(s, "patch_size"),
        transformer=transformer,
        channels=s.integer("num_channels", 3),
        classes=classes_of(s),
        head_reads_mean=head_reads_mean,
    )


_EMBEDDINGS: dict[str, Theirs] = {
    "first": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
_ATTENTION: dict[str, Theirs] = {
    "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "out": "attention.output.dense",
}
_VIT_LAYER: dict[str, Theirs] = {
    **_ATTENTION,
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_DINOV2_LAYER: dict[str, Theirs] = {
    **_ATTENTION,
    "attention_norm": "norm1",
    "attention_scale": "layer_scale1.lambda1",
    "mlp_norm": "norm2",
    "mlp_scale": "layer_scale2.lambda1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_GATED: dict[str, Theirs] = {"up": "mlp.weights_in", "down": "mlp.weights_out"}


def _names(layer: Mapping[str, Theirs]) -> dict[str, Theirs]:
    return {**_EMBEDDINGS, **layer_names("layers.blocks.{}.", "encoder.layer.{}.", layer)}


def _dinov2_names(config: ViTConfig) -> dict[str, Theirs]:
    return _names({**_DINOV2_LAYER, **_GATED} if config.transformer.gated else _DINOV2_LAYER)


FAMILIES = {
    "vit": Family(
        ViT,
        _vit,
        _names(_VIT_LAYER),
        prefixes=("vit.",),
        heads=("pooler.", "classifier.", "embeddings.mask_token", "decoder."),
    ),
    "dinov2": Family(
        ViT,
        _dinov2,
        _dinov2_names,
        prefixes=("dinov2.",),
        heads=("classifier.", "embeddings.mask_token"),
    ),
}
