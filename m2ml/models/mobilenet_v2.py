"""MobileNetV2 (Sandler et al., 2018), and the inverted residuals that it shares with EfficientNet-Lite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.convolution import Classifier, ConvNorm, divisible
from m2ml.models.family import Family, classes_of, pair_of
from m2ml.models.layers import modules
from m2ml.models.projection import Linear
from m2ml.models.settings import Settings
from m2ml.models.transformer import activation_of

Array = jax.Array

_WIDTHS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


class InvertedResidual(nnx.Module):
    """1x1 to a wider space, one channel at a time there, 1x1 back; added to its input where their shapes agree.

    ``common`` are arguments of every `ConvNorm`; the last one has no activation. ``padding`` gives that of a kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        wide: int,
        kernel: int,
        strides: int,
        padding: Any,
        activation: str,
        dilation: int = 1,
        expands: bool = True,
        **common: Any,
    ) -> None:
        self.adds = strides == 1 and inputs == outputs
        self.expand = ConvNorm(inputs, wide, 1, activation=activation, **common) if expands else None
        self.depthwise = ConvNorm(
            wide,
            wide,
            kernel,
            strides=strides,
            dilation=dilation,
            groups=wide,
            padding=padding,
            activation=activation,
            **common,
        )
        self.project = ConvNorm(wide, outputs, 1, **common)

    def __call__(self, x: Array, /) -> Array:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.adds else y


@dataclass(frozen=True)
class MobileNetV2Config:
    """Widths, strides and dilations of a MobileNetV2's blocks.

    ``widths`` has one more entry than ``strides`` and ``dilations``: what the stem gives. ``stem_expands``: the stem
    has a convolution of 1x1 before its depthwise one. ``same``: padding is TensorFlow's, else that of PyTorch.
    ``folded``: batch norms are part of the convolutions, as for inference. Raises ValueError for what does not fit.
    """

    stem: int
    widths: tuple[int, ...]
    wide: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    last: int
    stem_expands: bool = False
    same: bool = True
    activation: str = "relu6"
    norm_eps: float = 1e-3
    channels: int = 3
    classes: int | None = None
    image_size: tuple[int, int] = (224, 224)
    folded: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        counts = {len(self.widths) - 1, len(self.wide), len(self.strides), len(self.dilations)}
        if len(counts) > 1:
            raise ValueError(f"MobileNetV2Config: blocks need a width, a stride and a dilation each; got {counts}")


class MobileNetV2(Classifier):
    """Logits of the classes of each image, or its features where there is no classifier.

    ``images float32[b, height, width, channels] -> float32[b, classes]``.
    """

    def __init__(self, config: MobileNetV2Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        common = {"eps": config.norm_eps, "folded": config.folded, "rngs": rngs}

        def padding(kernel: int, dilation: int = 1) -> str | int:
            return "SAME" if config.same else (kernel - 1) // 2 * dilation

        act = config.activation
        self.first = ConvNorm(config.channels, config.stem, 3, strides=2, padding=padding(3), activation=act, **common)
        self.stem = InvertedResidual(
            config.stem,
            config.widths[0],
            wide=config.stem,
            kernel=3,
            strides=1,
            padding=padding(3),
            activation=act,
            expands=config.stem_expands,
            **common,
        )
        self.stem.adds = False
        sizes = zip(config.widths, config.widths[1:], config.wide, config.strides, config.dilations, strict=False)
        self.blocks = modules(
            [
                InvertedResidual(
                    a, b, wide=wide, kernel=3, strides=s, dilation=d, padding=padding(3, d), activation=act, **common
                )
                for a, b, wide, s, d in sizes
            ]
        )
        self.last = ConvNorm(config.widths[-1], config.last, 1, activation=act, **common)
        self.head = None if config.classes is None else Linear(config.last, config.classes, bias=True, rngs=rngs)

    def features(self, images: Array, /) -> Array:
        """The mean over places of what the last convolution gives, float32 ``[b, width]``."""
        x = self.stem(self.first(images.astype(jnp.dtype(self.config.dtype))))
        for block in self.blocks:
            x = block(x)
        return self.last(x).astype(jnp.float32).mean((1, 2))


def _mobilenet_v2(s: Settings) -> MobileNetV2Config:
    by, least, share = s.integer("depth_divisible_by", 8), s.integer("min_depth", 8), s.number("depth_multiplier", 1.0)

    def scaled(channels: float) -> int:
        return divisible(round(channels), by, least)

    widths = tuple(scaled(width * share) for width in _WIDTHS)
    strides, dilations = _strides(s.integer("output_stride", 32))
    fine = bool(s.get("finegrained_output", True)) and share < 1
    return MobileNetV2Config(
        stem=scaled(32 * share),
        widths=widths,
        wide=tuple(scaled(width * s.number("expand_ratio", 6.0)) for width in widths[:-1]),
        strides=strides,
        dilations=dilations,
        last=1280 if fine else scaled(1280 * share),
        stem_expands=not s.get("first_layer_is_expansion", True),
        same=bool(s.get("tf_padding", True)),
        activation=activation_of(s, "hidden_act", "relu6"),
        norm_eps=s.number("layer_norm_eps", 1e-3),
        channels=s.integer("num_channels", 3),
        classes=classes_of(s),
        image_size=pair_of(s, "image_size", 224),
    )


def _strides(most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of the blocks: once the image has shrunk ``most`` times, kernels spread instead."""
    found, shrunk, spread = list[tuple[int, int]](), 2, 1
    for stride in _STRIDES:
        if shrunk == most:
            found.append((1, spread))
            spread *= stride
        else:
            found.append((stride, 1))
            shrunk *= stride
    strides, dilations = zip(*found, strict=True)
    return strides, dilations


def _names() -> dict[str, str]:
    convolutions = {
        "first": "conv_stem.first_conv",
        "stem.expand": "conv_stem.expand_1x1",
        "stem.depthwise": "conv_stem.conv_3x3",
        "stem.project": "conv_stem.reduce_1x1",
        "blocks.{}.expand": "layer.{}.expand_1x1",
        "blocks.{}.depthwise": "layer.{}.conv_3x3",
        "blocks.{}.project": "layer.{}.reduce_1x1",
        "last": "conv_1x1",
    }
    parts = (("conv", "convolution"), ("norm", "normalization"))
    found = {f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in convolutions.items() for a, b in parts}
    return {**found, "head": "classifier"}


FAMILIES = {
    "mobilenet_v2": Family(
        MobileNetV2,
        _mobilenet_v2,
        _names(),
        prefixes=("mobilenet_v2.",),
        heads=("classifier.",),
        buffers=("num_batches_tracked",),
    )
}
