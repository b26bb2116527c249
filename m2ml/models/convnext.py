"""ConvNeXt (Liu et al., 2022)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.convolution import Classifier, Conv
from m2ml.models.family import Family, classes_of, pair_of
from m2ml.models.functional import repeated
from m2ml.models.layers import LayerNorm, modules
from m2ml.models.patches import PatchEmbedding
from m2ml.models.projection import Linear, value_of
from m2ml.models.settings import Settings
from m2ml.models.transformer import activation_of

Array = jax.Array

#: That of all norms but the last, which configurations do not name.
_EPS = 1e-6


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Widths and depths of a ConvNeXt's stages. Raises ValueError for what does not fit together."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: int = 4
    activation: str = "gelu"
    norm_eps: float = 1e-12
    layer_scale: bool = True
    channels: int = 3
    classes: int | None = None
    image_size: tuple[int, int] = (224, 224)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths) or min(*self.widths, *self.depths) < 1:
            raise ValueError(
                f"ConvNeXtConfig: stages need a width and a depth each; got {self.widths} and {self.depths}"
            )


class Layer(nnx.Module):
    """7x7 one channel at a time, a norm, and an MLP; added to the input."""

    def __init__(self, config: ConvNeXtConfig, width: int, *, rngs: nnx.Rngs) -> None:
        self.width, self.activation = width, config.activation
        self.depthwise = Conv((7, 7, 1, width), bias=True, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=_EPS)
        self.up = Linear(width, 4 * width, bias=True, rngs=rngs)
        self.down = Linear(4 * width, width, bias=True, rngs=rngs)
        self.factor = nnx.Param(jnp.ones((width,), jnp.float32)) if config.layer_scale else None

    def __call__(self, x: Array, /) -> Array:
        y = self.norm(self.depthwise(x, padding=3, groups=self.width))
        y = self.down(self.up(y, activation=self.activation))
        return x + (y if self.factor is None else y * value_of(self.factor).astype(y.dtype))


class Shrink(nnx.Module):
    """A norm, then one vector of each 2x2."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(inputs, epsilon=_EPS)
        self.patches = PatchEmbedding((2, 2), inputs, outputs, bias=True, rngs=rngs)

    def __call__(self, x: Array, /) -> Array:
        return self.patches.grid(self.norm(x))


class Stage(nnx.Module):
    """Layers of one width; all stages but the first halve height and width before them."""

    def __init__(self, config: ConvNeXtConfig, inputs: int, width: int, depth: int, *, rngs: nnx.Rngs) -> None:
        self.shrink = None if inputs == 0 else Shrink(inputs, width, rngs=rngs)
        self.layers = repeated(functools.partial(Layer, config), [width] * depth, rngs=rngs)

    def __call__(self, x: Array, /) -> Array:
        x = x if self.shrink is None else self.shrink(x)
        for layer in self.layers:
            x = layer(x)
        return x


class ConvNeXt(Classifier):
    """Logits of the classes of each image, or its features where there is no classifier.

    ``images float32[b, height, width, channels] -> float32[b, classes]``.
    """

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        patch = (config.patch, config.patch)
        self.patches = PatchEmbedding(patch, config.channels, config.widths[0], bias=True, rngs=rngs)
        self.patch_norm = LayerNorm(config.widths[0], epsilon=_EPS)
        sizes = zip((0, *config.widths), config.widths, config.depths, strict=False)
        self.stages = modules([Stage(config, a, b, depth, rngs=rngs) for a, b, depth in sizes])
        width = config.widths[-1]
        self.norm = LayerNorm(width, epsilon=config.norm_eps)
        self.head = None if config.classes is None else Linear(width, config.classes, bias=True, rngs=rngs)

    def features(self, images: Array, /) -> Array:
        """The last norm of the mean over places, float32 ``[b, width]``."""
        x = self.patch_norm(self.patches.grid(images.astype(jnp.dtype(self.config.dtype))))
        for stage in self.stages:
            x = stage(x)
        return self.norm(x.astype(jnp.float32).mean((1, 2)))


def _convnext(s: Settings) -> ConvNeXtConfig:
    return ConvNeXtConfig(
        widths=s.integers("hidden_sizes", (96, 192, 384, 768), most=1 << 16),
        depths=s.integers("depths", (3, 3, 9, 3), most=1024),
        patch=s.integer("patch_size", 4, most=1 << 10),
        activation=activation_of(s, "hidden_act"),
        norm_eps=s.number("layer_norm_eps", 1e-12),
        layer_scale=s.number("layer_scale_init_value", 1e-6) > 0,
        channels=s.integer("num_channels", 3),
        classes=classes_of(s),
        image_size=pair_of(s, "image_size", 224),
    )


_NAMES = {
    "patches": "embeddings.patch_embeddings",
    "patch_norm": "embeddings.layernorm",
    "stages.{}.shrink.norm": "encoder.stages.{}.downsampling_layer.0",
    "stages.{}.shrink.patches": "encoder.stages.{}.downsampling_layer.1",
    "stages.{}.layers.{}.depthwise": "encoder.stages.{}.layers.{}.dwconv",
    "stages.{}.layers.{}.norm": "encoder.stages.{}.layers.{}.layernorm",
    "stages.{}.layers.{}.up": "encoder.stages.{}.layers.{}.pwconv1",
    "stages.{}.layers.{}.down": "encoder.stages.{}.layers.{}.pwconv2",
    "stages.{}.layers.{}.factor": "encoder.stages.{}.layers.{}.layer_scale_parameter",
    "norm": "layernorm",
    "head": "classifier",
}

FAMILIES = {"convnext": Family(ConvNeXt, _convnext, _NAMES, prefixes=("convnext.",), heads=("classifier.",))}
