"""A model of images with its preprocessing, its classes and its parameters on a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml.inference.preprocessing import PREPROCESSOR, Preprocessing, of_timm, preprocessing_of
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.checkpoints.folder import settings_in
from m2ml.models.family import Family
from m2ml.models.functional import functional
from m2ml.models.settings import CheckpointError
from m2ml.plugins import registry

#: Images that are computed at a time: on a processor as many as its cache holds the numbers of.
BATCH_ON_CPU, BATCH = 4, 32


@dataclass(frozen=True)
class Guess:
    """A class that a picture may be of: its number, its name (or its number again), and how likely it is."""

    number: int
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class ImageModel:
    """``params`` are arrays of ``backend``; ``labels`` name the classes, as far as the checkpoint does."""

    name: str
    module: Any
    config: Any
    params: Any
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    backend: str

    def __call__(self, images: Any, /) -> Any:
        """Logits ``[b, classes]``, or features where there is no classifier, of float32 ``[b, height, width, 3]``."""
        return self._call(self.params, jnp.asarray(images, jnp.float32))

    def classify(self, pictures: Sequence[Any], *, top: int = 5, batch: int | None = None) -> list[list[Guess]]:
        """The likeliest classes of each picture: paths, Pillow images, or uint8 ``[height, width, 3]``.

        At most ``batch`` pictures are computed at a time; unless given, as many as suit the device.
        """
        if self.config.classes is None:
            raise CheckpointError(f"{self.name} has no classifier; it gives features")
        found = [
            self.logits(self.preprocessing.batch(part))
            for part in parts(pictures, self._batch if batch is None else batch)
        ]
        return likeliest(np.concatenate(found), self.labels, top) if found else []

    def logits(self, images: Any, /, *, batch: int | None = None) -> Any:
        """What a call gives, as NumPy, of at most ``batch`` images at a time."""
        return self._in_parts(self._call, images, self._batch if batch is None else batch)

    def features(self, pictures: Sequence[Any], *, batch: int | None = None) -> Any:
        """One vector for each picture, NumPy float32 ``[pictures, embed]``: what a classifier reads."""
        size = self._batch if batch is None else batch
        return np.concatenate(
            [self._in_parts(self._features, self.preprocessing.batch(part), size) for part in parts(pictures, size)]
        )

    def _in_parts(self, function: Any, images: Any, batch: int) -> Any:
        """``function`` of a few images at a time, filled up to sizes of which there are few."""
        found = []
        for part in parts(images, batch):
            size = min(1 << (len(part) - 1).bit_length(), batch)
            more = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
            whole = np.concatenate([part, more]) if len(more) else part
            found.append(np.asarray(m2ml.get(function(self.params, whole)))[: len(part)])
        return np.concatenate(found)

    @cached_property
    def _batch(self) -> int:
        return BATCH_ON_CPU if registry.get(self.backend).devices()[0].kind == "cpu" else BATCH

    @cached_property
    def _call(self) -> Any:
        return m2ml.jit(functional(self.module, self.config).apply, backend=self.backend)

    @cached_property
    def _features(self) -> Any:
        apply = functional(self.module, self.config).apply
        return m2ml.jit(lambda params, images: apply(params, images, method="features"), backend=self.backend)


def parts(items: Any, size: int) -> Iterator[Any]:
    """``items``, at most ``size`` at a time."""
    if size < 1:
        raise CheckpointError(f"batch is {size}; it must be at least 1")
    return (items[start : start + size] for start in range(0, len(items), size))


def likeliest(logits: Any, labels: Sequence[str], top: int) -> list[list[Guess]]:
    """For each row of logits the ``top`` likeliest classes, the likeliest first."""
    logits = np.asarray(logits, np.float64)
    if top < 1:
        raise CheckpointError(f"top is {top}; it must be at least 1")
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return [
        [Guess(int(i), labels[i] if i < len(labels) else str(i), float(row[i])) for i in np.argsort(-row)[:top]]
        for row in shares
    ]


def image_model(checkpoint: Checkpoint, family: Family, config: Any, params: Any, backend: str) -> ImageModel:
    """The model of a folder, with what ``preprocessor_config.json`` and ``id2label`` say."""
    labels = checkpoint.settings.part("id2label").values
    named = tuple(str(labels.get(str(i), i)) for i in range(config.classes or 0)) if labels else ()
    return ImageModel(
        checkpoint.path.name,
        family.module,
        config,
        params,
        _preprocessing(checkpoint, config.image_size),
        named,
        backend,
    )


def _preprocessing(checkpoint: Checkpoint, size: tuple[int, int]) -> Preprocessing:
    if "pretrained_cfg" in checkpoint.settings.values and not (checkpoint.path / PREPROCESSOR).exists():
        return of_timm(checkpoint.settings.part("pretrained_cfg"), size)
    return preprocessing_of(settings_in(checkpoint.path / PREPROCESSOR), size)
