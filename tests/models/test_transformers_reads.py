"""What `m2ml convert` writes, transformers reads, and computes the same with: ``pip install torch transformers``."""

from __future__ import annotations

from pathlib import Path

import family_cases
import numpy as np
import pytest
import tiny_checkpoints
from family_cases import CASES

from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of
from m2ml.models.saving import convert
from m2ml.models.saving_family import convert_family

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind])
def test_transformers_computes_the_golden_numbers_with_it(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers and torch are no dependencies of m2ml")
    from make_golden_families import output_of

    case = family_cases.golden()[name]
    convert_family(open_checkpoint(family_cases.write(tmp_path / "model", case, shards=3)), tmp_path / "again")
    kind = getattr(transformers, CASES[name].model)
    model, report = kind.from_pretrained(tmp_path / "again", attn_implementation="eager", output_loading_info=True)
    # Counters of training steps, which the tiny checkpoints do not have and no result depends on.
    assert all(key.endswith("num_batches_tracked") for key in report["missing_keys"])
    assert not report["unexpected_keys"]
    found = family_cases.kept(name, output_of(name, model.eval().float()))
    # The numbers of the same program on the same weights, kept to seven digits.
    np.testing.assert_allclose(found, case["output"], rtol=2**-18, atol=2**-20 * np.abs(case["output"]).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", tiny_checkpoints.CASES)
def test_transformers_computes_the_golden_logits_with_it(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers and torch are no dependencies of m2ml")
    from make_golden import last_logits

    case = tiny_checkpoints.golden()[name]
    checkpoint = open_checkpoint(tiny_checkpoints.write(tmp_path / "model", case, shards=2))
    convert(checkpoint, config_of(checkpoint), tmp_path / "again")
    kind = transformers.AutoModelForCausalLM
    model, report = kind.from_pretrained(tmp_path / "again", attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = last_logits(model.eval().float())
    np.testing.assert_allclose(found, case["logits"], rtol=2**-18, atol=2**-20 * np.abs(case["logits"]).max())
