"""Small tasks that train in milliseconds, on made data: what is tested here is the machinery."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import m2ml
from m2ml.data import Images, Text
from m2ml.models import CNNConfig, GPTConfig
from m2ml.training import OptimizerConfig, Session, Task, cnn_task, gpt_task

STEPS = 20
BACKENDS = sorted(m2ml.backends())
WORDS = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 8


@functools.cache
def tiny_gpt(*, dropout: float = 0.0) -> Task:
    text = Text("words", WORDS)
    config = GPTConfig(len(text.vocabulary), context=8, layers=1, heads=2, embed_dim=16, dropout=dropout)
    return gpt_task(text, config, optimizer=OptimizerConfig(STEPS, 5e-3), batch_size=4, seed=3)


def stripes(count: int, *, size: int = 8, classes: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """uint8 images with one bright row each; the row is the class."""
    generator = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % classes
    images = generator.integers(0, 100, (count, size, size, 1)).astype(np.uint8)
    images[np.arange(count), 1 + 2 * labels] = 250
    return images, labels


@functools.cache
def tiny_cnn(*, dropout: float = 0.0) -> Task:
    data = Images("stripes", stripes(30), stripes(9))
    config = CNNConfig(8, 8, 1, data.classes, features=(4, 6), hidden_dim=8, dropout=dropout)
    return cnn_task(data, config, optimizer=OptimizerConfig(STEPS, 5e-3), batch_size=6, seed=3)


TASKS: dict[str, Callable[..., Task]] = {"gpt": tiny_gpt, "cnn": tiny_cnn}


def trained(task: Task, backend: str, folder: Path | None = None, *, end: int | None = None) -> Session:
    """A new run of ``task`` to step ``end``, the last one if not given."""
    session = Session(task, backend, folder)
    session.train(end=end)
    return session
