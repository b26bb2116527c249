"""What a planted fault is: a change of an equation's outputs, written against NumPy arrays.

A change is told how to run the right rule and computes wrong outputs with it. Where a changed equation would be
refused or give other shapes or dtypes than declared, the right outputs stay: what no engine runs tests nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.backend import Backend
from m2ml.errors import UnsupportedPrimitive
from m2ml.interpreter import Equation, Rule, apply_rule

Array = np.ndarray[Any, Any]
#: Runs an equation by the right rule of its primitive, on host arrays.
Run = Callable[[Equation, Sequence[Array]], list[Array]]
#: Computes wrong outputs of an equation.
Change = Callable[[Run, Equation, Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class Fault:
    """One way to be wrong: ``kind`` is its family, ``label`` says what is done."""

    kind: str
    label: str
    change: Change


def attempted(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array] | None:
    """What the rule gives for a changed equation, or None where that is refused or has other types."""
    try:
        return run(equation, inputs)
    except Exception:  # whatever a rule raises that is given an equation it was not made for
        return None


def runner(backend: Backend, rules: Mapping[str, Rule]) -> Run:
    """Runs equations by ``rules`` on host arrays; raises where the types differ from those declared.

    Types are checked before anything is computed: an engine may read beyond its arrays in a changed equation.
    """

    def run(equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        native = apply_rule(rules, equation, [backend.from_host(x) for x in inputs])
        shapes = [tuple(y.shape) for y in native]
        if shapes != [tuple(aval.shape) for aval in equation.outputs]:
            raise UnsupportedPrimitive(f"{equation.describe()} would give {shapes}")
        outs = [backend.to_host(y) for y in native]
        dtypes = [y.dtype for y in outs]
        if dtypes != [aval.dtype for aval in equation.outputs]:
            raise UnsupportedPrimitive(f"{equation.describe()} would give {dtypes}")
        return outs

    return run


def planted(backend: Any, primitive: str, fault: Fault) -> dict[str, Rule]:
    """A copy of the table of ``backend`` in which the rule of ``primitive`` has ``fault``."""
    run = runner(backend, backend.rules)

    def wrong(equation: Equation, *arrays: Any) -> list[Any]:
        outs = fault.change(run, equation, [backend.to_host(x) for x in arrays])
        return [backend.from_host(y) for y in outs]

    return {**backend.rules, primitive: wrong}
