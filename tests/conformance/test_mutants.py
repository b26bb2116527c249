"""Tests of the tests: wrong rules planted in a copy of a backend's table are caught by the generated cases.

``benchmarks/study_mutants.py`` plants every fault in every rule; here a fixed sample of rules gets one of each kind.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml.equivalence.mutants import Fault, planted, verdicts
from m2ml.equivalence.mutants.faults import faults_of
from m2ml.equivalence.mutants.parameters import other_values
from m2ml.equivalence.mutants.verdicts import collect, judge_mutant, neighbours
from m2ml.equivalence.primitives.cases import load
from m2ml.plugins import registry

#: One of so many rules is in the sample.
STEP = 15

#: Mutants of the sample that survive the examples of the suite, each with its reason.
SURVIVORS: dict[str, str] = {}


def rules_of(name):
    return sorted(set(load()) & set(registry.get(name).rules))


@functools.cache
def sample(name):
    """The verdicts on one mutant per kind of fault of every `STEP`-th rule."""
    backend, found = registry.get(name), []
    for primitive in rules_of(name)[::STEP]:
        trials = collect(backend, primitive)
        if trials:
            faults = faults_of([t.equation for t in trials], neighbours(primitive, trials))
            for fault in {fault.kind: fault for fault in faults}.values():
                found.append(judge_mutant(backend, primitive, fault, trials))
    return found


def test_every_mutant_of_the_sample_that_is_met_is_caught_but_for_the_known_survivors():
    assert {v.name for v in sample("mlx") if v.fate == "survived"} == set(SURVIVORS)


def test_the_sample_is_large_and_few_of_its_mutants_are_not_met():
    caught = sum(v.fate == "caught" for v in sample("mlx"))
    assert caught >= 40
    assert caught >= 0.8 * len(sample("mlx"))


def test_every_rule_has_faults_enough_for_two_hundred_mutants():
    """Counted without running them: every rule has at least the faults of its outputs."""
    assert len(rules_of("mlx")) * len(faults_of([t.equation for t in collect(registry.get("mlx"), "neg")], ())) > 200


def test_a_table_with_a_planted_fault_is_a_copy():
    mlx = registry.get("mlx")
    wrong = planted(mlx, "sin", Fault("", "off by one", lambda run, equation, x: [run(equation, x)[0] + 1]))
    assert {name for name in wrong if wrong[name] is not mlx.rules[name]} == {"sin"}
    program = m2ml.jit(lambda x: jnp.sin(x) * 2).program(np.float32(0))
    got = [
        backend.to_host(backend.compile(program)(backend.from_host(np.zeros((), np.float32)))[0])
        for backend in (mlx, type(mlx)(rules=wrong))
    ]
    assert [float(x) for x in got] == [0, 2]


def test_a_mutant_that_is_the_right_rule_is_equivalent_and_not_caught():
    mlx = registry.get("mlx")
    fault = Fault("", "none", lambda run, equation, inputs: run(equation, inputs))
    assert judge_mutant(mlx, "exp", fault, collect(mlx, "exp")).fate == "equivalent"


def test_a_fault_that_rounding_hides_survives():
    """One unit in the last place is within the bound of an exponential."""
    mlx = registry.get("mlx")

    def next_number(run, equation, inputs):
        right = run(equation, inputs)[0]
        larger = np.nextafter(right, np.asarray(np.inf, right.dtype)) if right.dtype.kind != "c" else right
        return [np.where(np.isfinite(right) & (right != 0), larger, right)]

    verdict = judge_mutant(mlx, "exp", Fault("", "one unit up", next_number), collect(mlx, "exp"))
    assert (verdict.fate, verdict.differing > 0) == ("survived", True)


class Halves(m2ml.InterpreterBackend):
    """A stranger's backend of one rule."""

    name = "halves"
    rules: ClassVar = {"max": np.errstate(all="ignore")(lambda equation, x, y: np.where(np.isnan(x) | (x > y), x, y))}

    def from_host(self, array):
        return array

    def to_host(self, array):
        return np.asarray(array)

    def owns(self, array):
        return isinstance(array, np.ndarray)

    def stack(self, arrays, aval):
        return np.stack(arrays)


def test_any_backend_with_a_table_of_rules_can_be_given_wrong_ones():
    found = list(verdicts(Halves(), "max", count=10))
    assert {v.fate for v in found if v.fault.kind in ("dropped tail", "does nothing")} == {"caught"}


@pytest.mark.parametrize(
    ("value", "least", "others"),
    [
        (True, 0, [False]),
        (1, 0, [2, 0]),
        (1, 1, [2]),
        ((0, 1), 0, [(1, 0), (1, 1), (0, 2), (0, 0)]),
        (((1, 2),), 1, [((2, 1),), ((2, 2),), ((1, 3),), ((1, 1),)]),
        (None, 0, []),
        (np.dtype("float32"), 0, []),
    ],
)
def test_other_values_of_a_parameter_are_legal(value, least, others):
    assert list(dict.fromkeys(other_values(value, least))) == others
