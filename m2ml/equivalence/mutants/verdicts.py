"""Plant every fault in a copy of a backend's table and see whether the generated cases of its primitive catch it."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from m2ml.compat import is_inexact
from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.equations import equation_bounds, judge_equation, rounded, same_equation
from m2ml.equivalence.mutants.fault import Array, Fault, runner
from m2ml.equivalence.mutants.faults import faults_of
from m2ml.equivalence.primitives.cases import EXAMPLES, Case, examples, load
from m2ml.equivalence.primitives.check import traced
from m2ml.equivalence.scales import NORMWISE
from m2ml.errors import UnsupportedPrimitive
from m2ml.interpreter import Equation
from m2ml.plugins import registry
from m2ml.precision import widen

#: How many times as many examples tell an equivalent mutant from one that they missed.
THOROUGH = 10

#: How many primitives with similar results stand in for a primitive.
NEIGHBOURS = 3


@dataclass(frozen=True)
class Trial:
    """One equation of one example: its inputs, what the right rule gives, and its bounds."""

    equation: Equation
    inputs: Sequence[Array]
    right: Sequence[Array]
    bounds: Sequence[Bound]

    def catches(self, outputs: Sequence[Array]) -> bool:
        """Whether ``outputs`` are held to be wrong."""
        return not all(report.ok for report in judge_equation(self.equation, self.inputs, outputs, self.bounds))

    def tells_apart(self, outputs: Sequence[Array]) -> bool:
        """Whether ``outputs`` differ from the right rule's in any bit; a NaN has none that count."""
        return any(_bits(y) != _bits(r) for y, r in zip(outputs, self.right, strict=True))


def _bits(x: Array) -> bytes:
    return (np.where(np.isnan(x), np.asarray(np.nan, x.dtype), x) if is_inexact(x.dtype) else x).tobytes()


Fate = Literal["caught", "survived", "equivalent"]


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant. An equivalent one gave the right outputs, bit for bit, in every example.

    ``differing`` is in how many equations its outputs were others before it was caught.
    """

    primitive: str
    fault: Fault
    fate: Fate
    differing: int = 0

    @property
    def name(self) -> str:
        return f"{self.primitive}: {self.fault.label}"


def verdicts(backend: Any, primitive: str, *, seed: int = 0, count: int = EXAMPLES) -> Iterator[Verdict]:
    """The verdict on every mutant of the rule of ``primitive``; nothing where no example runs the rule.

    A mutant that the examples do not tell from the right rule is shown `THOROUGH` times as many others: it survived
    if these tell, and is equivalent if they do not either.
    """
    trials = collect(backend, primitive, seed=seed, count=count)
    more: list[Trial] = []
    for fault in faults_of([t.equation for t in trials], neighbours(primitive, trials)) if trials else ():
        verdict = judge_mutant(backend, primitive, fault, trials)
        if verdict.fate == "equivalent":
            more = more or collect(backend, primitive, seed=seed + 1, count=THOROUGH * count)
            differing = judge_mutant(backend, primitive, fault, more).differing
            verdict = replace(verdict, fate="survived" if differing else "equivalent")
        yield verdict


def judge_mutant(backend: Any, primitive: str, fault: Fault, trials: Sequence[Trial]) -> Verdict:
    """Run the mutant on every trial until one catches it."""
    run, differing = runner(backend, backend.rules), 0
    for trial in trials:
        with np.errstate(all="ignore"):
            outputs = fault.change(run, trial.equation, list(trial.inputs))
            if trial.tells_apart(outputs):
                differing += 1
                if trial.catches(outputs):
                    return Verdict(primitive, fault, "caught", differing)
    return Verdict(primitive, fault, "survived" if differing else "equivalent", differing)


def generated(primitive: str, *, seed: int, count: int) -> list[Case]:
    """That many cases of a primitive; none where this JAX does not have it."""
    generator, cases = load()[primitive], []
    try:
        examples(lambda draw: cases.append(generator(draw, primitive)), count, seed=seed)
    except unittest.SkipTest:
        return []
    return cases


def collect(backend: Any, primitive: str, *, seed: int = 0, count: int = EXAMPLES) -> list[Trial]:
    """The different equations of ``primitive`` in its generated cases, those that the rule of ``backend`` takes."""
    run, trials = runner(backend, backend.rules), {}
    for function, arrays in generated(primitive, seed=seed, count=count):
        for equation, inputs, bounds in equations_of(function, arrays):
            key = (same_equation(equation), *(x.tobytes() for x in inputs))
            if equation.name != primitive or key in trials:
                continue
            try:
                trials[key] = Trial(equation, inputs, run(equation, inputs), bounds)
            except UnsupportedPrimitive:
                continue
    return list(trials.values())


def equations_of(
    function: Callable[..., Any], arrays: Sequence[Array]
) -> Iterator[tuple[Equation, list[Array], list[Bound]]]:
    """Every equation of a function with the inputs that the reference gives it, and its bounds."""
    code = traced(function, arrays)
    env = dict(zip(code.inputs, (np.asarray(x) for x in arrays), strict=True))
    env.update(code.constants)
    for step in code.steps:
        inputs = [env[i] for i in step.inputs]
        bounds = equation_bounds(step.equation, inputs)
        yield step.equation, inputs, bounds
        env.update(zip(step.outputs, rounded(bounds), strict=True))


def neighbours(primitive: str, trials: Sequence[Trial]) -> list[str]:
    """The primitives whose results, by the reference, are most like those of ``primitive`` on the same inputs."""
    reference: Any = registry.get("reference")
    others = sorted(set(reference.rules) - NORMWISE - {primitive})
    shown = [trial for trial in trials if trial.right and trial.right[0].size][:NEIGHBOURS]
    likeness = {name: sum(_likeness(reference.rules[name], trial) for trial in shown) for name in others}
    return [name for name in sorted(others, key=lambda n: -likeness[n])[:NEIGHBOURS] if likeness[name]]


def _likeness(rule: Callable[..., Any], trial: Trial) -> float:
    """The share of elements that another rule of the reference gives alike."""
    try:
        with np.errstate(all="ignore"):
            outs = rule(trial.equation, *(widen(x) for x in trial.inputs))
            got = np.asarray(outs[0] if isinstance(outs, list | tuple) else outs)
            want = trial.bounds[0].expected
            return float(np.mean(np.isclose(got, want, equal_nan=True))) if got.shape == want.shape else 0.0
    except Exception:  # a rule that was not made for this equation
        return 0.0
