"""Every family but the decoders: what transformers computes, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import family_cases
import pytest
from family_cases import CASES
from tiny_families import TinyFamily
from tiny_models import BACKENDS

from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.families import FAMILIES


def test_every_family_has_a_case() -> None:
    assert {name.split(",")[0] for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_transformers(name: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family_of(name)
    tiny.hold(family_cases.with_kept(name, tiny.bound.expected, tiny.golden))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_agree_on_every_backend(name: str, backend: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family_of(name)
    tiny.hold(tiny.output(backend))


@pytest.mark.parametrize("name", ["resnet, early", "mobilenet_v2"])
def test_batch_norms_that_are_kept_give_the_same(name: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    """As fine-tuning takes them; the folded form is what the other tests run."""
    tiny = tiny_family_of(name)
    kept = replace(tiny, config=replace(tiny.config, folded=False))
    assert {path[-1] for path, _ in kept.family.read(open_checkpoint(tiny.folder), kept.config)} >= {"mean", "variance"}
    tiny.hold(kept.output("cpu"))
