"""EfficientNet-Lite: EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, as timm has it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.convolution import Classifier, ConvNorm, divisible
from m2ml.models.family import Family
from m2ml.models.layers import modules
from m2ml.models.mobilenet_v2 import InvertedResidual
from m2ml.models.projection import Linear
from m2ml.models.settings import Settings

Array = jax.Array

#: timm's names of the architectures; with ``tf_`` they have TensorFlow's padding and epsilon.
ARCHITECTURE = re.compile(r"(tf_)?efficientnet_lite([0-4])(\..*)?")

#: Factors of width and depth, and the size of the image.
_SIZES = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))


@dataclass(frozen=True)
class StageConfig:
    """``repeats`` blocks, the first of which has these strides; ``expansion`` 1 leaves the first convolution out."""

    repeats: int
    kernel: int
    strides: int
    expansion: int
    channels: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"StageConfig: {name} must be a whole number from 1 on; got {value!r}")


#: EfficientNet-B0's stages; the first and the last are never deepened.
STAGES = (
    StageConfig(1, 3, 1, 1, 16),
    StageConfig(2, 3, 2, 6, 24),
    StageConfig(2, 5, 2, 6, 40),
    StageConfig(3, 3, 2, 6, 80),
    StageConfig(3, 5, 1, 6, 112),
    StageConfig(4, 5, 2, 6, 192),
    StageConfig(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Stages of an EfficientNet-Lite. ``same``: padding is TensorFlow's, else that of PyTorch.

    ``folded``: batch norms are part of the convolutions, as for inference.
    """

    stages: tuple[StageConfig, ...] = STAGES
    stem: int = 32
    last: int = 1280
    same: bool = True
    norm_eps: float = 1e-3
    channels: int = 3
    classes: int | None = 1000
    image_size: tuple[int, int] = (224, 224)
    folded: bool = True
    dtype: str = "float32"


class EfficientNetLite(Classifier):
    """Logits of the classes of each image, or its features where there is no classifier.

    ``images float32[b, height, width, channels] -> float32[b, classes]``.
    """

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        common = {"eps": config.norm_eps, "folded": config.folded, "rngs": rngs}
        self.stem = ConvNorm(
            config.channels, config.stem, 3, strides=2, padding=self._padding(3), activation="relu6", **common
        )
        stages, width = [], config.stem
        for stage in config.stages:
            blocks = []
            for i in range(stage.repeats):
                block = InvertedResidual(
                    width,
                    stage.channels,
                    wide=width * stage.expansion,
                    kernel=stage.kernel,
                    strides=1 if i else stage.strides,
                    padding=self._padding(stage.kernel),
                    activation="relu6",
                    expands=stage.expansion != 1,
                    **common,
                )
                blocks.append(block)
                width = stage.channels
            stages.append(modules(blocks))
        self.stages = modules(stages)
        self.last = ConvNorm(width, config.last, 1, activation="relu6", **common)
        self.head = None if config.classes is None else Linear(config.last, config.classes, bias=True, rngs=rngs)

    def _padding(self, kernel: int) -> str | int:
        return "SAME" if self.config.same else kernel // 2

    def features(self, images: Array, /) -> Array:
        """The mean over places of what the last convolution gives, float32 ``[b, last]``."""
        x = self.stem(images.astype(jnp.dtype(self.config.dtype)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.last(x).astype(jnp.float32).mean((1, 2))


def is_efficientnet_lite(settings: Settings) -> bool:
    """Whether a configuration is timm's of an EfficientNet-Lite."""
    return ARCHITECTURE.fullmatch(str(settings.get("architecture"))) is not None


def _efficientnet_lite(s: Settings) -> EfficientNetLiteConfig:
    match = ARCHITECTURE.fullmatch(str(s.get("architecture")))
    if match is None:
        raise s.wrong(
            "architecture", s.get("architecture"), "it must be tf_efficientnet_lite0 to 4, as timm names them"
        )
    width, depth, size = _SIZES[int(match[2])]
    stages, pretrained = _stages(s), s.part("pretrained_cfg")
    ends = (0, len(stages) - 1)
    return EfficientNetLiteConfig(
        stages=tuple(
            StageConfig(
                stage.repeats if i in ends else math.ceil(stage.repeats * depth),
                stage.kernel,
                stage.strides,
                stage.expansion,
                divisible(stage.channels * width),
            )
            for i, stage in enumerate(stages)
        ),
        stem=s.integer("stem_size", 32),
        last=s.integer("num_features", 1280),
        same=match[1] is not None,
        norm_eps=1e-3 if match[1] else 1e-5,
        classes=s.integer("num_classes", pretrained.integer("num_classes", 1000)),
        image_size=(size, size),
    )


def _stages(s: Settings) -> tuple[StageConfig, ...]:
    """Those of the configuration, five whole numbers each, or the usual ones."""
    given = s.get("stages")
    if given is None:
        return STAGES
    return tuple(StageConfig(*Settings({"stages": one}, s.source).integers("stages", most=1024)) for one in given)


def _names(config: EfficientNetLiteConfig) -> dict[str, str]:
    """timm counts the norms of a block, and calls its last convolution otherwise where there is no first one."""
    found = {"stem.conv": "conv_stem", "stem.norm": "bn1", "last.conv": "conv_head", "last.norm": "bn2"}
    for i, stage in enumerate(config.stages):
        parts = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
        if stage.expansion == 1:
            parts = [("depthwise", "conv_dw"), ("project", "conv_pw")]
        for number, (ours, theirs) in enumerate(parts, 1):
            for j in range(stage.repeats):
                found[f"stages.{i}.{j}.{ours}.conv"] = f"blocks.{i}.{j}.{theirs}"
                found[f"stages.{i}.{j}.{ours}.norm"] = f"blocks.{i}.{j}.bn{number}"
    return {**found, "head": "classifier"}


FAMILIES = {
    "efficientnet_lite": Family(
        EfficientNetLite,
        _efficientnet_lite,
        _names,
        heads=("classifier.",),
        buffers=("num_batches_tracked",),
    )
}
