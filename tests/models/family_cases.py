"""Tiny checkpoints of every family but the decoders: configurations, inputs, and weights made from a tensor's name.

Sizes are awkward: no two alike, images that are not square, rows that are padded. `make_golden_families.py` computes
with transformers what such a checkpoint gives and keeps the numbers in golden_outputs.json.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_checkpoints
from tiny_checkpoints import LENGTHS, VOCABULARY, tokens

GOLDEN = Path(__file__).with_name("golden_outputs.json")


@dataclass(frozen=True)
class Case:
    """A class of transformers, without its ending Config, the class of its model, and its configuration."""

    kind: str
    model: str
    settings: dict[str, Any]


_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 0,
}

_IMAGES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 4,
    "layer_norm_eps": 1e-3,
    "mlp_ratio": 2,
}
_RESNET = {"embedding_size": 12, "hidden_sizes": [20, 24], "depths": [2, 1]}
_MOBILE = {"depth_multiplier": 0.2, "depth_divisible_by": 2, "min_depth": 4, "finegrained_output": False}

#: Stages of its own in place of EfficientNet-B0's, which would take the suite too long.
_LITE = {"stages": [[1, 3, 1, 1, 8], [2, 5, 2, 3, 12], [1, 3, 1, 2, 16]], "stem_size": 8, "num_features": 20}


def _clip(end: int) -> dict[str, Any]:
    tower = {"intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_eps": 1e-3}
    text = {"hidden_size": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 17, "eos_token_id": end}
    vision = {"hidden_size": 32, "image_size": 12, "patch_size": 4}
    return {"text_config": {**tower, **text}, "vision_config": {**tower, **vision}, "projection_dim": 20}


CASES: dict[str, Case] = {
    "bert": Case("Bert", "BertForMaskedLM", {**_TEXT, "hidden_act": "gelu_new"}),
    "roberta": Case("Roberta", "RobertaModel", {**_TEXT, "type_vocab_size": 1}),
    "xlm-roberta": Case("XLMRoberta", "XLMRobertaForSequenceClassification", {**_TEXT, "hidden_act": "relu"}),
    "distilbert": Case(
        "DistilBert",
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "dim": 24,
            "hidden_dim": 40,
            "n_layers": 2,
            "n_heads": 3,
            "max_position_embeddings": 29,
            "pad_token_id": 0,
        },
    ),
    "vit": Case("ViT", "ViTForImageClassification", {**_IMAGES, "image_size": (12, 20), "num_labels": 7}),
    "vit, no classifier": Case("ViT", "ViTModel", {**_IMAGES, "image_size": (12, 20), "qkv_bias": False}),
    "dinov2": Case("Dinov2", "Dinov2ForImageClassification", {**_IMAGES, "image_size": 12, "num_labels": 7}),
    "dinov2, gated": Case("Dinov2", "Dinov2Model", {**_IMAGES, "image_size": 12, "use_swiglu_ffn": True}),
    "resnet": Case("ResNet", "ResNetForImageClassification", {**_RESNET, "layer_type": "bottleneck", "num_labels": 7}),
    "resnet, basic": Case(
        "ResNet", "ResNetModel", {**_RESNET, "layer_type": "basic", "downsample_in_first_stage": True}
    ),
    "resnet, early": Case(
        "ResNet",
        "ResNetForImageClassification",
        {**_RESNET, "layer_type": "bottleneck", "downsample_in_bottleneck": True, "hidden_act": "gelu"},
    ),
    "mobilenet_v2": Case("MobileNetV2", "MobileNetV2ForImageClassification", {**_MOBILE, "num_labels": 7}),
    "mobilenet_v2, dilated": Case(
        "MobileNetV2",
        "MobileNetV2Model",
        {**_MOBILE, "output_stride": 8, "tf_padding": False, "first_layer_is_expansion": False, "hidden_act": "silu"},
    ),
    "efficientnet_lite": Case("", "", {**_LITE, "architecture": "tf_efficientnet_lite0", "num_classes": 7}),
    "efficientnet_lite, deeper": Case("", "", {**_LITE, "architecture": "efficientnet_lite3", "num_classes": 5}),
    "convnext": Case(
        "ConvNext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [12, 20], "depths": [1, 2], "num_stages": 2, "layer_norm_eps": 1e-3, "num_labels": 7},
    ),
    "convnext, unscaled": Case(
        "ConvNext",
        "ConvNextModel",
        {"hidden_sizes": [12, 20], "depths": [2, 1], "num_stages": 2, "patch_size": 3, "layer_scale_init_value": 0.0},
    ),
    "clip": Case("CLIP", "CLIPModel", _clip(VOCABULARY - 1)),
    "clip, the largest token ends": Case("CLIP", "CLIPModel", _clip(2)),
}


#: Kinds that read texts; the others read images, and CLIP both.
_READS_TEXTS = ("bert", "roberta", "xlm-roberta", "distilbert")

#: Height and width of the pictures, where they are not those that the configuration names.
_SIZES = {"dinov2": (21, 13), "dinov2, gated": (8, 17)}


def reads_texts(name: str) -> bool:
    return name.split(",")[0] in _READS_TEXTS


def images(name: str) -> Any:
    """float32 ``[2, height, width, 3]``."""
    height, width = _SIZES.get(name, CASES[name].settings.get("image_size", (25, 38)))
    return np.random.default_rng(5).normal(size=(2, height, width, 3)).astype(np.float32)


def inputs(name: str) -> tuple[Any, ...]:
    """What the model of a case is called with: tokens and lengths, or images, or images and tokens."""
    if reads_texts(name):
        return tokens(), np.array(LENGTHS, np.int32)
    if not name.startswith("clip"):
        return (images(name),)
    texts = np.minimum(tokens(), VOCABULARY - 2)
    for row, length in zip(texts, LENGTHS, strict=True):
        row[length - 1 :] = VOCABULARY - 1
    return np.random.default_rng(5).normal(size=(3, 12, 12, 3)).astype(np.float32), texts


def kept(name: str, output: Any) -> Any:
    """The part of an output that golden_outputs.json has: of texts, the vectors of the last three tokens of each."""
    if not reads_texts(name):
        return output
    return np.stack([row[length - 3 : length] for row, length in zip(output, LENGTHS, strict=True)])


def with_kept(name: str, output: Any, golden: Any) -> Any:
    """``output`` with the golden numbers in place of its own."""
    if not reads_texts(name):
        return np.reshape(golden, output.shape)
    found = np.array(output)
    for row, length, part in zip(found, LENGTHS, golden, strict=True):
        row[length - 3 : length] = part
    return found


def real(name: str) -> Any:
    """Which elements of an output are no padding."""
    return (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None])[..., None] if reads_texts(name) else True


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The float32 weight of a tensor's name."""
    if len(shape) in (1, 2):
        x = tiny_checkpoints.weight(name, shape)
        return np.float32(0.5) + np.abs(x) if name.endswith("running_var") else x
    fan_in = math.prod(shape[1:])
    return tiny_checkpoints.weight(name, (shape[0] if shape else 1, fan_in)).reshape(shape)


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def write(folder: Path, case: dict[str, Any], *, shards: int = 1) -> Path:
    """The checkpoint of a case of `golden` as a Hugging Face folder."""
    return tiny_checkpoints.write(folder, case, shards=shards, make=weight)
