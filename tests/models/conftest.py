"""Tiny models of every architecture, made once, and the bound of their logits, measured once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from tiny_families import TinyFamily, tiny_family
from tiny_models import Tiny, tiny


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    return functools.cache(lambda name: tiny(name, tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tiny_family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyFamily]:
    return functools.cache(lambda name: tiny_family(name, tmp_path_factory.mktemp("tiny")))
