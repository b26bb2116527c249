"""ResNet (He et al., 2015), basic and with bottlenecks."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m2ml.models.convolution import Classifier, ConvNorm
from m2ml.models.family import Family, classes_of
from m2ml.models.layers import modules
from m2ml.models.projection import Linear
from m2ml.models.settings import Settings
from m2ml.models.transformer import activate, activation_of

Array = jax.Array

LAYERS = ("basic", "bottleneck")

#: That of PyTorch's batch norm, which configurations of ResNet do not name.
NORM_EPS = 1e-5

_MOST = 1 << 16


@dataclass(frozen=True)
class ResNetConfig:
    """Widths and depths of a ResNet's stages.

    ``layer`` is "basic" (two convolutions of 3x3) or "bottleneck" (1x1, 3x3, 1x1). A stage but the first halves height
    and width, in its first layer's 3x3 convolution or, with ``shrink_first``, in its 1x1; the first does so with
    ``shrink_first_stage``. ``folded``: batch norms are part of the convolutions, as for inference. Raises ValueError
    for what does not fit together.
    """

    embed_dim: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    layer: str = "bottleneck"
    activation: str = "relu"
    shrink_first_stage: bool = False
    shrink_first: bool = False
    channels: int = 3
    classes: int | None = None
    image_size: tuple[int, int] = (224, 224)
    folded: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.layer not in LAYERS:
            raise ValueError(f"ResNetConfig: layer must be one of {LAYERS}; got {self.layer!r}")
        if not self.widths or len(self.widths) != len(self.depths) or min(*self.widths, *self.depths) < 1:
            raise ValueError(f"ResNetConfig: stages need a width and a depth each; got {self.widths} and {self.depths}")

    @property
    def norm_eps(self) -> float:
        return NORM_EPS


class Layer(nnx.Module):
    """Convolutions, to which their input is added, itself or through a convolution of 1x1."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, strides: int, *, rngs: nnx.Rngs) -> None:
        self.activation = config.activation
        # Outputs, kernel and strides of each.
        sizes = [(outputs, 3, strides), (outputs, 3, 1)]
        if config.layer == "bottleneck":
            inner, early = outputs // 4, config.shrink_first
            sizes = [(inner, 1, strides if early else 1), (inner, 3, 1 if early else strides), (outputs, 1, 1)]
        made, width = [], inputs
        for i, (to, kernel, stride) in enumerate(sizes):
            # Between convolutions it is always ReLU, whatever the configuration says of the others.
            activation = "none" if i == len(sizes) - 1 else "relu"
            made.append(_conv(config, width, to, kernel, stride, activation, rngs=rngs))
            width = to
        self.convolutions = modules(made)
        changes = inputs != outputs or strides != 1
        self.shortcut = _conv(config, inputs, outputs, 1, strides, "none", rngs=rngs) if changes else None

    def __call__(self, x: Array, /) -> Array:
        y = x
        for convolution in self.convolutions:
            y = convolution(y)
        return activate(y + (x if self.shortcut is None else self.shortcut(x)), self.activation)


def _conv(
    config: ResNetConfig, inputs: int, outputs: int, kernel: int, strides: int, activation: str, *, rngs: nnx.Rngs
) -> ConvNorm:
    return ConvNorm(
        inputs,
        outputs,
        kernel,
        strides=strides,
        padding=kernel // 2,
        activation=activation,
        eps=config.norm_eps,
        folded=config.folded,
        rngs=rngs,
    )


class Stage(nnx.Module):
    """Layers of one width, of which the first may halve height and width."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, depth: int, strides: int, *, rngs: nnx.Rngs
    ) -> None:
        sizes = [(inputs, strides), *[(outputs, 1)] * (depth - 1)]
        self.layers = modules([Layer(config, width, outputs, stride, rngs=rngs) for width, stride in sizes])

    def __call__(self, x: Array, /) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class ResNet(Classifier):
    """Logits of the classes of each image, or its features where there is no classifier.

    ``images float32[b, height, width, channels] -> float32[b, classes]``.
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stem = _conv(config, config.channels, config.embed_dim, 7, 2, config.activation, rngs=rngs)
        first = 2 if config.shrink_first_stage else 1
        sizes = zip((config.embed_dim, *config.widths), config.widths, config.depths, strict=False)
        self.stages = modules(
            [Stage(config, a, b, depth, 2 if i else first, rngs=rngs) for i, (a, b, depth) in enumerate(sizes)]
        )
        width = config.widths[-1]
        self.head = None if config.classes is None else Linear(width, config.classes, bias=True, rngs=rngs)

    def features(self, images: Array, /) -> Array:
        """The mean over places of what the last stage gives, float32 ``[b, width]``."""
        x = _pooled(self.stem(images.astype(jnp.dtype(self.config.dtype))))
        for stage in self.stages:
            x = stage(x)
        return x.astype(jnp.float32).mean((1, 2))


def _pooled(x: Array) -> Array:
    """The largest of every second window of 3x3."""
    lowest = np.array(-np.inf, x.dtype)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    pooled: Array = jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)
    return pooled


def _resnet(s: Settings) -> ResNetConfig:
    return ResNetConfig(
        embed_dim=s.integer("embedding_size", 64),
        widths=s.integers("hidden_sizes", most=_MOST),
        depths=s.integers("depths", most=1024),
        layer=str(s.get("layer_type", "bottleneck")),
        activation=activation_of(s, "hidden_act", "relu"),
        shrink_first_stage=bool(s.get("downsample_in_first_stage", False)),
        shrink_first=bool(s.get("downsample_in_bottleneck", False)),
        channels=s.integer("num_channels", 3),
        classes=classes_of(s),
    )


_NAMES = {
    "stem.conv": "embedder.embedder.convolution",
    "stem.norm": "embedder.embedder.normalization",
    "stages.{}.layers.{}.convolutions.{}.conv": "encoder.stages.{}.layers.{}.layer.{}.convolution",
    "stages.{}.layers.{}.convolutions.{}.norm": "encoder.stages.{}.layers.{}.layer.{}.normalization",
    "stages.{}.layers.{}.shortcut.conv": "encoder.stages.{}.layers.{}.shortcut.convolution",
    "stages.{}.layers.{}.shortcut.norm": "encoder.stages.{}.layers.{}.shortcut.normalization",
    "head": "classifier.1",
}

FAMILIES = {
    "resnet": Family(
        ResNet, _resnet, _NAMES, prefixes=("resnet.",), heads=("classifier.",), buffers=("num_batches_tracked",)
    )
}
