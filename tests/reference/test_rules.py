"""The reference against XLA on the CPU, over JAX's own cases: a spread of each group."""

from __future__ import annotations

import pytest
from run_harnesses import cases, failures, spread

#: Cases per group; ``run_harnesses.py`` runs them all.
PER_GROUP = 8


@pytest.mark.parametrize("group", sorted(cases()))
def test_agrees_with_xla(group: str) -> None:
    wrong = [line for case in spread(cases()[group], PER_GROUP) for line in failures(case)]
    assert not wrong, "\n".join(wrong)
