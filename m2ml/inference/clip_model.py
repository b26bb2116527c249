"""CLIP with its tokenizer, its preprocessing and its parameters on a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import m2ml
from m2ml.inference.image_model import Guess, likeliest
from m2ml.inference.preprocessing import PREPROCESSOR, Preprocessing, preprocessing_of
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.checkpoints.folder import settings_in
from m2ml.models.clip import CLIP, CLIPConfig
from m2ml.models.functional import functional
from m2ml.models.settings import CheckpointError
from m2ml.models.tokenizer import Tokenizer, from_folder


@dataclass(frozen=True, eq=False)
class CLIPModel:
    """``params`` are arrays of ``backend``; ``tokenizer`` is None where the checkpoint has none."""

    name: str
    config: CLIPConfig
    params: Any
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    backend: str

    def __call__(self, images: Any, tokens: Any, /) -> Any:
        """Logits ``[b, n]`` of images float32 ``[b, height, width, 3]`` and the tokens int32 ``[n, t]`` of texts."""
        return self._methods["__call__"](self.params, images, tokens)

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """One vector of length 1 for each text, NumPy float32 ``[texts, embed]``."""
        return np.asarray(m2ml.get(self._methods["text_vectors"](self.params, self.tokens(texts))))

    def encode_images(self, pictures: Sequence[Any]) -> Any:
        """One vector of length 1 for each picture, NumPy float32 ``[pictures, embed]``."""
        images = self.preprocessing.batch(pictures)
        return np.asarray(m2ml.get(self._methods["image_vectors"](self.params, images)))

    def classify(self, pictures: Sequence[Any], labels: Sequence[str], *, top: int = 5) -> list[list[Guess]]:
        """The texts among ``labels`` that fit each picture best."""
        logits = m2ml.get(self(self.preprocessing.batch(pictures), self.tokens(labels)))
        return likeliest(logits, labels, top)

    def tokens(self, texts: Sequence[str]) -> Any:
        """int32 ``[texts, context]``; what is longer is cut off, what is shorter filled up after its end."""
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name} has no tokenizer; put its tokenizer.json beside its weights")
        found = np.zeros((len(texts), self.config.context), np.int32)
        for row, encoding in zip(found, self.tokenizer.rust.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return found

    @cached_property
    def _methods(self) -> dict[str, Any]:
        apply = functional(CLIP, self.config).apply

        def compiled(method: str) -> Any:
            return m2ml.jit(lambda params, *inputs: apply(params, *inputs, method=method), backend=self.backend)

        return {method: compiled(method) for method in ("__call__", "text_vectors", "image_vectors")}


def clip_model(checkpoint: Checkpoint, config: CLIPConfig, params: Any, backend: str) -> CLIPModel:
    """The model of a folder, with its tokenizer and what ``preprocessor_config.json`` says."""
    tokenizer = from_folder(checkpoint.path, checkpoint.settings.values)
    if tokenizer is not None:
        tokenizer.rust.enable_truncation(config.context)
    preprocessing = preprocessing_of(settings_in(checkpoint.path / PREPROCESSOR), config.image_size)
    return CLIPModel(checkpoint.path.name, config, params, tokenizer, preprocessing, backend)
