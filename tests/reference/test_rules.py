"""Every rule of the reference gives the declared shapes for operands of the declared shapes, over JAX's own cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from m2ml_reference.engine import ReferenceBackend

from m2ml.equivalence.jax_cases import cases, problem, spread

#: Cases per group; `m2ml conformance reference --jax-cases` runs them all, and holds JAX to the reference's bounds.
PER_GROUP = 6


class Checked(ReferenceBackend):
    """The reference, asserting shapes. (Its bodies may be applied to many elements at once.)"""

    def apply(self, equation: Any, arrays: Any) -> Any:
        outs = super().apply(equation, arrays)
        if [np.shape(x) for x in arrays] == [tuple(aval.shape) for aval in equation.inputs]:
            assert [x.shape for x in outs] == [tuple(aval.shape) for aval in equation.outputs], equation.describe()
        return outs


@pytest.mark.parametrize("group", cases())
def test_shapes_are_those_declared(group: str) -> None:
    for case in spread(cases()[group], PER_GROUP):
        ready = problem(case)
        outs = Checked().run_code(ready.program.code, ready.host)
        assert [y.shape for y in outs] == [tuple(aval.shape) for aval in ready.program.code.out_avals], case.name
