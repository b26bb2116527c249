"""What holds of every op and kernel that comes with m2ml, read from the registry and the files."""

import importlib.resources
from pathlib import Path

import flax.nnx
import jax
import numpy as np
import pytest

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.ops import call_of, cotangents_of, in_dtype, pullback
from m2ml.kernel import kernels
from m2ml.op import definitions_only, ops

FOLDER = Path(str(importlib.resources.files("m2ml_kernels")))
FILES = sorted(file for language in ("cpp/*.cc", "metal/*.metal", "cuda/*.cu") for file in FOLDER.glob(language))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_kernels_is_named_after_an_op_and_begins_with_its_formula(file):
    assert file.stem.removesuffix("_backward") in ops
    first = file.read_text().splitlines()[0]
    assert first.startswith("// ")
    assert "=" in first or "->" in first or "*" in first


def test_every_file_of_kernels_is_registered_and_every_source_is_a_file():
    sources = {record.source for record in kernels.all() if isinstance(record.source, Path)}
    assert {file.resolve() for file in FILES} == {source.resolve() for source in sources}


@pytest.mark.parametrize("name", sorted(ops))
def test_no_op_uses_what_a_provider_of_apple_gpus_replaces(name, monkeypatch):
    """One replaces these process-wide, by versions that are wrong for some masks; no value or gradient calls them."""

    def replaced(*args, **kwargs):
        raise AssertionError("an op calls what a provider replaces")

    monkeypatch.setattr(jax.nn, "gelu", replaced)
    monkeypatch.setattr(jax.nn, "dot_product_attention", replaced)
    monkeypatch.setattr(flax.nnx.LayerNorm, "__call__", replaced)
    monkeypatch.setattr(flax.nnx.LayerNorm, "__init__", replaced)
    jax.clear_caches()
    for sample in list(ops[name].samples())[::5]:
        fn, args = definitions_only(call_of(ops[name], sample)), in_dtype(sample, np.float32)
        jax.eval_shape(pullback(fn, args), args, cotangents_of(fn, args))
