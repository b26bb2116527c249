"""Whatever model a folder holds, ready to be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import m2ml
from m2ml.inference.clip_model import clip_model
from m2ml.inference.image_model import image_model
from m2ml.inference.pretrained import PRETRAINED
from m2ml.inference.text_encoder import text_encoder
from m2ml.models.architectures import DECODERS
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.clip import CLIPConfig
from m2ml.models.encoder import EncoderConfig
from m2ml.models.families import family_of, kind_of
from m2ml.models.settings import CheckpointError, check_dtype


def load(path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> Any:
    """The model at ``path``, a Hugging Face folder: by its ``model_type`` a `TextEncoder`, an `ImageModel`,
    a `CLIPModel` or a language model.

    Where nothing stands there, ``path`` may be the short name of a model that is fetched (`m2ml.inference.pretrained`).
    Weights are read where they lie, checked, and handed to ``backend``, one parameter at a time. What is computed in
    is ``dtype``, float32 unless given. Raises `CheckpointError` where a file is missing, damaged, or of an
    architecture that is not covered.
    """
    if not Path(path).exists():
        if str(path) not in PRETRAINED:
            known = " or ".join(PRETRAINED)
            raise CheckpointError(f"there is no model at {path}; give a folder with config.json, or {known}")
        path = PRETRAINED[str(path)]()
    checkpoint = open_checkpoint(path)
    if kind_of(checkpoint.settings) in DECODERS:
        from m2ml.generation import load as load_language_model

        return load_language_model(path, backend=backend, dtype=dtype)
    if dtype is not None:
        check_dtype(dtype)
    family, backend = family_of(checkpoint.settings), backend or m2ml.current()
    config = replace(family.read_config(checkpoint.settings), dtype=dtype or "float32")
    params = family.load_params(checkpoint, config, backend=backend)
    if isinstance(config, EncoderConfig):
        return text_encoder(checkpoint, config, params, backend)
    if isinstance(config, CLIPConfig):
        return clip_model(checkpoint, config, params, backend)
    return image_model(checkpoint, family, config, params, backend)
