"""The study of the bounds' two errors, in small: no correct engine outside its bound, planted faults outside theirs."""

import importlib.util
import itertools
from pathlib import Path

import pytest

from m2ml.equivalence.measure import measured_bounds
from m2ml.equivalence.mutants import Fault, planted
from m2ml.equivalence.mutants.precision import through
from m2ml.plugins import registry

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "study_bounds.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study_bounds", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_correct_engine_is_outside_its_bound(study):
    names = ["add", "div", "dot_general", "exp", "max", "reduce_sum", "sort", "tanh", "transpose"]
    samples = itertools.islice(study.composed(names, 0), 27)
    mlx, outside = registry.get("mlx"), []
    for what, program, host in samples:
        share = study.worst(program, host, study.outputs(mlx, program, host), measured_bounds(program, host))
        if share > 1:
            outside.append((what, share))
    assert outside == []


@pytest.mark.parametrize(
    ("primitive", "label", "change"),
    [
        ("tanh", "bfloat16", lambda run, e, xs: [through("bfloat16")(y) for y in run(e, xs)]),
        ("reduce_sum", "zeros", lambda run, e, xs: [y * 0 for y in run(e, xs)]),
        ("transpose", "reversed", lambda run, e, xs: [y[::-1] for y in run(e, xs)]),
        ("max", "swapped for the first", lambda run, e, xs: [xs[0]]),
    ],
)
def test_a_planted_fault_leaves_the_bound_of_some_program(study, primitive, label, change):
    mlx = registry.get("mlx")
    wrong = type(mlx)(rules=planted(mlx, primitive, Fault("", label, change)))
    fates = []
    for _, program, host in itertools.islice(study.holding(primitive, 0), study.CHANCES):
        right = study.outputs(mlx, program, host)
        fates.append(study.fate_of(wrong, program, host, measured_bounds(program, host), right))
    assert "caught" in fates


def test_a_rate_has_the_limits_of_clopper_and_pearson(study):
    assert study.rate(0, 100) == "0 of 100, 0.00% (0.000% to 3.62%)"
    assert study.rate(0, 0).startswith("0 of 0")
