"""Every family but the decoders: what transformers computes, on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import family_cases
import numpy as np
import pytest
from family_cases import CASES
from safetensors.numpy import load_file
from tiny_families import TinyFamily
from tiny_models import BACKENDS

from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.families import FAMILIES
from m2ml.models.saving_family import convert_family

#: Cases that both backends run in the fast suite; between them they have every kind of layer.
FAST = ("bert", "dinov2, gated", "clip", "resnet, basic", "efficientnet_lite, deeper", "convnext")


def test_every_family_has_a_case() -> None:
    assert {name.split(",")[0] for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_transformers(name: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family_of(name)
    tiny.hold(family_cases.with_kept(name, tiny.bound.expected, tiny.golden))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_outputs_agree_on_every_backend(name: str, backend: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family_of(name)
    tiny.hold(tiny.output(backend))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    case = family_cases.golden()[name]
    convert_family(open_checkpoint(family_cases.write(tmp_path / "model", case, shards=2)), tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == case["tensors"].keys()
    for tensor, shape in case["tensors"].items():
        np.testing.assert_array_equal(found[tensor], family_cases.weight(tensor, tuple(shape)))
    assert json.loads((tmp_path / "again" / "config.json").read_text()).items() >= case["config"].items()


@pytest.mark.parametrize("name", ["resnet, basic", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_batch_norms_that_are_kept_give_the_same(name: str, tiny_family_of: Callable[[str], TinyFamily]) -> None:
    """As fine-tuning takes them; the folded form is what the other tests run."""
    tiny = tiny_family_of(name)
    kept = replace(tiny, config=replace(tiny.config, folded=False))
    assert {path[-1] for path, _ in kept.family.read(open_checkpoint(tiny.folder), kept.config)} >= {"mean", "variance"}
    tiny.hold(kept.output("cpu"))
