"""Every model but the decoders by the ``model_type`` of its configuration."""

from __future__ import annotations

from collections.abc import Mapping

from m2ml.models import clip, convnext, efficientnet_lite, encoder, mobilenet_v2, resnet, vit
from m2ml.models.architectures import DECODERS
from m2ml.models.family import Family
from m2ml.models.settings import CheckpointError, Settings

#: ``model_type`` -> its family.
FAMILIES: Mapping[str, Family] = {
    **encoder.FAMILIES,
    **vit.FAMILIES,
    **clip.FAMILIES,
    **resnet.FAMILIES,
    **mobilenet_v2.FAMILIES,
    **efficientnet_lite.FAMILIES,
    **convnext.FAMILIES,
}


def kind_of(settings: Settings) -> str:
    """The ``model_type``, which timm's configurations do not have."""
    return "efficientnet_lite" if efficientnet_lite.is_efficientnet_lite(settings) else str(settings.get("model_type"))


def family_of(settings: Settings) -> Family:
    """The family of a configuration. Raises `CheckpointError` for one that is not covered."""
    kind = kind_of(settings)
    if kind not in FAMILIES:
        known = ", ".join(sorted({*FAMILIES, *DECODERS}))
        raise CheckpointError(f"{settings.source} has model_type {kind[:60]!r}; m2ml reads {known}")
    return FAMILIES[kind]
