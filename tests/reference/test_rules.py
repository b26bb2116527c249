"""The reference against XLA on the CPU, over a spread of JAX's own cases, every rule giving the declared shapes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from m2ml_reference.engine import ReferenceBackend

from m2ml.equivalence.jax_cases import attempt, cases, problem, spread

#: Cases per group; `m2ml conformance reference --jax-cases` runs them all, and holds JAX to the reference's bounds.
PER_GROUP = 4


class Checked(ReferenceBackend):
    """The reference, asserting shapes. (Its bodies may be applied to many elements at once.)"""

    def apply(self, equation: Any, arrays: Any) -> Any:
        outs = super().apply(equation, arrays)
        if [np.shape(x) for x in arrays] == [tuple(aval.shape) for aval in equation.inputs]:
            assert [x.shape for x in outs] == [tuple(aval.shape) for aval in equation.outputs], equation.describe()
        return outs


_OLD_IGAMMAC = pytest.mark.xfail(
    jax.__version_info__ < (0, 6), reason="igammac of jax 0.5 is 1, not NaN, outside its domain"
)


@pytest.mark.parametrize("group", [pytest.param(g, marks=[_OLD_IGAMMAC] if g == "igammac" else []) for g in cases()])
def test_agrees_with_xla(group: str) -> None:
    for case in spread(cases()[group], PER_GROUP):
        ready = problem(case)
        outs = Checked().run_code(ready.program.code, ready.host)
        assert [y.shape for y in outs] == [tuple(aval.shape) for aval in ready.program.code.out_avals], case.name
        outcome = attempt(ready, Checked())
        assert outcome.verdict == "passed", f"{outcome.name}: {outcome.said}"
