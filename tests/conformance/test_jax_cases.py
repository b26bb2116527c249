"""JAX's own cases: what running them says, and a spread of them on the reference and on MLX, plain and transformed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax

import m2ml
from m2ml import Gap
from m2ml.equivalence import jax_cases
from m2ml.equivalence.jax_cases import TRANSFORMS, Case, attempt, cases, problem, run, spread, summary, table
from m2ml.equivalence.jax_transforms import BATCH, NotTransformable, batched, differentiated

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    yield
    jax.clear_caches()


# A spread of the cases ---------------------------------------------------------------------------------------


#: Groups whose long series the reference evaluates many times over: only as they are.
SLOW = frozenset({"igamma", "igammac", "random_gamma", "regularized_incomplete_beta"})


def _chosen(group: str) -> list[Case]:
    """The first case of a group as it is, one from the middle under vmap, the last differentiated."""
    members = spread(cases()[group], len(TRANSFORMS))
    transforms = TRANSFORMS[:1] if group in SLOW else TRANSFORMS
    return [replace(members[min(i, len(members) - 1)], transform=t) for i, t in enumerate(transforms)]


@pytest.mark.parametrize("group", cases())
def test_reference_and_mlx_agree_with_jax(group: str) -> None:
    wrong = []
    for case in _chosen(group):
        try:
            ready = problem(case)
        except NotTransformable:
            continue
        outcomes = [attempt(ready, m2ml.backends()[name]) for name in ("reference", "mlx")]
        wrong += [f"{outcome.name}: {outcome.said}" for outcome in outcomes if outcome.verdict == "failed"]
    assert not wrong, "\n".join(wrong)


def test_the_order_of_the_cases_does_not_depend_on_the_process() -> None:
    script = "from m2ml.equivalence.jax_cases import cases; print([c.name for g in cases().values() for c in g])"
    names = [case.name for group in cases().values() for case in group]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(names)
    assert len(names) == len(set(names))


# Transformed cases -------------------------------------------------------------------------------------------


def test_a_batch_is_of_different_copies() -> None:
    args = (np.float32([1.0, -2.0]), np.int32([2, -2, 0]), np.array([True, False]), jax.random.key(3))
    fn, stacked = batched(lambda *xs: xs, args, fixed_integers=False)
    floats, integers, booleans, keys = stacked
    np.testing.assert_array_equal(floats, [[1.0, -2.0], [0.875, -1.75], [0.75, -1.5]])
    np.testing.assert_array_equal(integers, [[2, -2, 0], [1, -1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(booleans, [[True, False], [False, True], [True, False]])
    assert keys.shape == (BATCH,)
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()}) == BATCH
    assert jax.eval_shape(fn, *stacked)[0].shape == (BATCH, 2)


def test_promised_integers_stay_as_they_are() -> None:
    _, (integers,) = batched(lambda x: x, (np.int32([2, 5]),), fixed_integers=True)
    np.testing.assert_array_equal(integers, [[2, 5]] * BATCH)


def test_gradients_are_of_the_floating_leaves_that_are_determined() -> None:
    def fn(x, i, y):
        return x * y, x + i

    args = (np.float32([1, 2]), np.int32([3, 4]), np.float32([5, 6]))
    pullback, inputs = differentiated(fn, args, (0,), alike=True)
    np.testing.assert_array_equal(pullback(*inputs), [[5, 6], [1, 2]])
    pullback, inputs = differentiated(fn, args, (1,), alike=True)
    np.testing.assert_array_equal(pullback(*inputs), [[1, 1], [0, 0]])


def test_what_has_no_pullback_is_pushed_forward() -> None:
    def fn(x):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x))[1]

    pushforward, inputs = differentiated(fn, (np.float32([1, 2]),), (0,), alike=True)
    np.testing.assert_array_equal(pushforward(*inputs), [[8, 8]])


@pytest.mark.parametrize(
    ("fn", "args", "said"),
    [
        (lambda x: x + 1, (np.int32(1),), "no floating argument"),
        (lambda x: x > 1, (np.float32(1),), "no floating result"),
        (lambda x: jax.pure_callback(lambda y: y, x, x), (np.float32(1),), "vjp: ValueError: Pure callbacks do not"),
    ],
)
def test_what_jax_does_not_differentiate_says_why(fn, args, said) -> None:
    with pytest.raises(NotTransformable, match=said):
        differentiated(fn, args, (0,), alike=False)


# Verdicts ----------------------------------------------------------------------------------------------------


class Wrong:
    """A backend that runs programs on another one and then spoils the results."""

    name = "wrong"

    def __init__(self, gaps=(), spoil=lambda y: y, lacking=()):
        self.engine, self.gaps, self.spoil, self.lacking = m2ml.backends()["cpu"], gaps, spoil, lacking

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def compile(self, program):
        missing = set(program.primitives) & set(self.lacking)
        if missing and program.strict:
            raise m2ml.UnsupportedPrimitive(f"there is no rule for {', '.join(missing)}")
        run = self.engine.compile(program)
        return lambda *args: [self.engine.from_host(self.spoil(self.engine.to_host(y))) for y in run(*args)]


def _sin() -> jax_cases.Problem:
    return problem(next(case for case in cases()["sin"] if "float32" in case.name))


def test_a_right_result_passes() -> None:
    assert attempt(_sin(), Wrong()).verdict == "passed"


def test_a_wrong_result_fails_and_says_by_how_much() -> None:
    outcome = attempt(_sin(), Wrong(spoil=lambda y: y * np.float32(1.001)))
    assert outcome.verdict == "failed"
    assert re.fullmatch(r"result 0 float32: [\d.e-]+ off at \[\d+, \d+\], [\d.e+]+ of the bound", outcome.said)


def test_a_wrong_dtype_fails() -> None:
    assert "got float16" in attempt(_sin(), Wrong(spoil=lambda y: y.astype(np.float16))).said


@pytest.mark.parametrize(
    "gap", [Gap("sin", "*", "why"), Gap("*", "float32", "why"), Gap("sin", "*", "why", case="sin_*")]
)
def test_a_declared_gap_explains_a_wrong_result_and_may_not_pass(gap: Gap) -> None:
    outcome = attempt(_sin(), Wrong([gap], spoil=lambda y: -y))
    assert (outcome.verdict, outcome.said) == ("gap", "why")
    outcome = attempt(_sin(), Wrong([gap]))
    assert outcome.verdict == "failed"
    assert "a declared gap passes (why): take it out" in outcome.said


@pytest.mark.parametrize(
    "gap", [Gap("cos", "*", "why"), Gap("sin", "int8", "why"), Gap("sin", "*", "why", case="cos_*")]
)
def test_a_gap_of_something_else_explains_nothing(gap: Gap) -> None:
    assert attempt(_sin(), Wrong([gap], spoil=lambda y: -y)).verdict == "failed"


def test_what_falls_back_is_no_pass_of_the_engine() -> None:
    declared, undeclared = Wrong([Gap("sin", "*", "on the CPU")], lacking={"sin"}), Wrong(lacking={"sin"})
    assert attempt(_sin(), declared).verdict == "fallback"
    assert attempt(_sin(), undeclared).verdict == "failed"
    assert attempt(_sin(), Wrong(declared.gaps, lambda y: -y, {"sin"})).verdict == "failed"


def test_a_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(m2ml.M2mlError, match="JAX has no cases of a group 'sine'; there are abs, acos"):
        run("cpu", groups=["sine"])


# Tables ------------------------------------------------------------------------------------------------------


def test_a_table_counts_and_gives_reasons() -> None:
    outcomes = [
        jax_cases.Outcome("a", "passed"),
        jax_cases.Outcome("b", "fallback", "on the CPU"),
        jax_cases.Outcome("c", "gap", "no such thing"),
        jax_cases.Outcome("d", "failed", "2 off"),
        jax_cases.Outcome("e", "excluded", "no floating argument"),
    ]
    said = table([summary("cpu", "none", "sin", outcomes[:1]), summary("cpu", "grad", "sin", outcomes)])
    assert "| sin | 1 of 1 | 1 of 4 (1 fallback, 1 gap, 1 failed) |" in said
    assert "| **all** | 1 of 1 | 1 of 4 (1 fallback, 1 gap, 1 failed) |" in said
    assert "grad, ran on the CPU in place of the engine, as declared:\n\n- 1: on the CPU" in said
    assert "grad, declared gaps:\n\n- 1: no such thing" in said
    assert "grad, not counted: JAX itself has no such transformation:\n\n- 1: no floating argument" in said
    assert "- `d`: 2 off" in said


def test_progress_and_limits() -> None:
    seen = []
    results = run("cpu", groups=["sin", "cos"], limit=2, progress=lambda *news: seen.append(news))
    assert [(r.group, r.cases, r.passed, r.ok) for r in results] == [("sin", 2, 2, True), ("cos", 2, 2, True)]
    assert seen == [("sin", 1, 4), ("sin", 2, 4), ("cos", 3, 4), ("cos", 4, 4)]


def _written(backend: str) -> str:
    """The committed table: what `m2ml conformance NAME --jax-cases`, with every --transform, printed."""
    return (PLUGINS / backend / "conformance.md").read_text()


def _rows(text: str) -> dict[str, str]:
    return {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}


def _numbers(cell: str) -> dict[str, int]:
    """``12 of 14 (1 fallback, 1 gap)`` by name; the cases that are neither passed nor noted are a mistake."""
    if cell == "-":
        return {"passed": 0, "cases": 0}
    passed, total, noted = re.fullmatch(r"(\d+) of (\d+)(?: \((.+)\))?", cell).groups()
    others = {what: int(count) for count, what in (item.split() for item in noted.split(", "))} if noted else {}
    assert int(total) == int(passed) + sum(others.values())
    return {"passed": int(passed), "cases": int(total), **others}


@pytest.mark.parametrize("backend", ["reference", "mlx"])
def test_the_written_table_adds_up_and_explains_itself(backend: str) -> None:
    text = _written(backend)
    rows = {name: row.strip("| ").split(" | ")[1:] for name, row in _rows(text).items()}
    assert rows.pop("group") == list(TRANSFORMS)
    rows.pop("---")
    total = [_numbers(cell) for cell in rows.pop("**all**")]
    assert list(rows) == list(cases())
    columns = zip(*([_numbers(cell) for cell in row] for row in rows.values()), strict=True)
    for column, summed in zip(columns, total, strict=True):
        assert summed == dict(sum(map(Counter, column), Counter()))
    assert total[0]["cases"] == sum(map(len, cases().values()))
    assert not any("failed" in numbers for numbers in total)
    reasons = {gap.reason for gap in (*m2ml.backends()[backend].gaps, *jax_cases.UPSTREAM)}
    for title, what in (("declared gaps", "gap"), ("ran on the CPU in place of the engine, as declared", "fallback")):
        said = re.findall(rf", {title}:\n\n((?:- .+\n)+)", text)
        counted = [line.removeprefix("- ").split(": ", 1) for block in said for line in block.splitlines()]
        assert {reason for _, reason in counted} <= reasons
        assert sum(int(count) for count, _ in counted) == sum(numbers.get(what, 0) for numbers in total)


@pytest.mark.parametrize("backend", ["reference", "mlx"])
def test_rows_of_the_written_table_are_made_again(backend: str) -> None:
    groups = ("clamp", "complex", "lu", "digamma")
    again = table([result for t in TRANSFORMS for result in run(backend, transform=t, groups=groups)])
    assert {g: _rows(again)[g] for g in groups} == {g: _rows(_written(backend))[g] for g in groups}
