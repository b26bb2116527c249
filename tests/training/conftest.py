"""Fixtures of the training tests: a cache of their own, no registry, and the user's own files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_tasks import TASKS, WORDS, stripes, trained

from m2ml.training import Agreement, Task, measure


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of the tests, and no registry in reach of them."""
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "words[b].txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


@pytest.fixture
def images_file(tmp_path: Path) -> Path:
    path = tmp_path / "stripes.npz"
    images, labels = stripes(40)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def agreement_of() -> Callable[[str], tuple[Task, Agreement]]:
    """A task by name and the measured bound of its loss curve, which is measured once."""

    @functools.cache
    def measured(name: str) -> tuple[Task, Agreement]:
        task = TASKS[name]()
        return task, measure(task, trained(task, "reference").losses)

    return measured
