"""Hold every equation of a function against the reference, on exactly the same inputs, for each backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from m2ml import compat
from m2ml.backend import Backend
from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.equations import equation_bounds, judge_equation, rounded, run_equation
from m2ml.equivalence.measure import SECOND_LOOK
from m2ml.equivalence.properties import PROPERTIES
from m2ml.interpreter import Code, Equation, Step, flatten

Array = np.ndarray[Any, Any]


def traced(fn: Callable[..., Any], arrays: Sequence[Array]) -> Code:
    jaxpr, _, _ = compat.trace(jax.jit(fn), arrays, {})
    return flatten(jaxpr)


def primitives(code: Code) -> set[str]:
    return {equation.name for equation in code.equations()}


def check(code: Code, arrays: Sequence[Array], backends: Sequence[Backend]) -> None:
    """Every equation of ``code`` on every backend against the reference, on the reference's inputs."""
    env = dict(zip(code.inputs, (np.asarray(x) for x in arrays), strict=True))
    env.update(code.constants)
    read = {*code.outputs, *(i for step in code.steps for i in step.inputs)}
    for step in code.steps:
        equation, inputs = step.equation, [env[i] for i in step.inputs]
        bounds = _of_those_read(equation_bounds(equation, inputs), step, read)
        outs = rounded(bounds)
        if equation.name in PROPERTIES:
            assert_inside("reference", equation, inputs, outs, bounds)
        for backend in backends:
            got = run_equation(backend, equation, inputs)
            if equation.name in CONTROL_FLOW and not all(r.ok for r in judge_equation(equation, inputs, got, bounds)):
                bounds = _of_those_read(equation_bounds(equation, inputs, runs=SECOND_LOOK), step, read)
            assert_inside(backend.name, equation, inputs, got, bounds)
        env.update(zip(step.outputs, outs, strict=True))


def _of_those_read(bounds: Sequence[Bound], step: Step, read: set[int]) -> list[Bound]:
    """The bounds of one step, of which values that nothing reads are not judged.

    A loop that ends where its result no longer changes leaves other values that do, by one more turn.
    """
    each = zip(bounds, step.outputs, strict=True)
    return [b if i in read else replace(b, unstable=np.ones(b.expected.shape, bool)) for b, i in each]


def assert_inside(
    name: str, equation: Equation, inputs: Sequence[Array], got: Sequence[Array], bounds: Sequence[Bound]
) -> None:
    """Every output of one equation lies inside its bound."""
    for report in judge_equation(equation, inputs, got, bounds):
        worst = [f" ({part})" for part in report.classes if part.worst > 1]
        assert report.ok, f"{name}: {equation.describe()}: {report}{''.join(worst)}"
