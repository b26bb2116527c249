"""Run JAX's own primitive cases through the reference: ``python tests/reference/run_harnesses.py [--group NAME]``.

The JAX wheel holds one ready-made case per primitive, dtype and parameter (`test_harnesses`). Each is traced, run by
the reference, and XLA's result on the CPU must lie within the bound that the reference measures: integers exact,
floats within the spread of perturbed runs (`m2ml.equivalence`).
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import scipy.optimize
from m2ml_reference.engine import ReferenceBackend

from m2ml import compat
from m2ml.equivalence.bounds import EXACT, ROUNDED, RUNS, SUMS, Perturbation, bound_of, unit
from m2ml.equivalence.judgement import judge
from m2ml.program import Program

Array = np.ndarray[Any, Any]

#: Groups whose first result is a set in no particular order.
UNORDERED = frozenset({"eig"})

#: Outputs that are determined, where others are so only up to a phase or the basis of a subspace.
DETERMINED = {"eig": (0,), "eigh": (1,), "svd": (0,)}


class Checked(ReferenceBackend):
    """The reference, which asserts that every rule gives the declared shapes for operands of the declared shapes."""

    def apply(self, equation: Any, arrays: Any) -> Any:
        outs = super().apply(equation, arrays)
        if [np.shape(x) for x in arrays] == [tuple(aval.shape) for aval in equation.inputs]:
            assert [x.shape for x in outs] == [tuple(aval.shape) for aval in equation.outputs], equation.describe()
        return outs


@dataclass(frozen=True)
class Case:
    """One harness: a name and how to make its function and arguments."""

    group: str
    harness: Any

    @property
    def name(self) -> str:
        return str(self.harness.fullname)

    def program(self) -> tuple[Program, Any, Sequence[Any]]:
        args = self.harness.dyn_args_maker(np.random.RandomState(0))
        jitted = jax.jit(self.harness.dyn_fun)
        closed, out_tree, donated = compat.trace(jitted, args, {})
        tree = jax.tree.structure((tuple(args), {}))
        return Program(self.name, closed, tree, out_tree, donated), jitted, args


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Every case that JAX implements on the CPU, by group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax._src.internal_test_util import test_harnesses
    groups = defaultdict(list)
    # JAX lists some of its cases in the order of a set, which differs between processes.
    for harness in sorted(test_harnesses.all_harnesses, key=lambda harness: harness.fullname):
        if harness.filter("cpu"):
            groups[harness.group_name].append(Case(harness.group_name, harness))
    return dict(groups)


def spread(items: Sequence[Case], count: int) -> list[Case]:
    """At most ``count`` of ``items``, evenly spread, the last included."""
    chosen = {round(i * (len(items) - 1) / max(count - 1, 1)) for i in range(count)}
    return [items[i] for i in sorted(chosen)]


def _host(leaf: Any) -> Array:
    typed_key = hasattr(leaf, "dtype") and compat.is_key(leaf.dtype)
    return np.asarray(jax.random.key_data(leaf) if typed_key else leaf)


def _nudged(generator: np.random.Generator, array: Array) -> Array:
    """Floats moved by at most one rounding unit of their dtype; everything else as it is."""
    if not unit(array.dtype):
        return array
    direction = generator.uniform(-1.0, 1.0, array.shape)
    return (array.astype(np.result_type(array, np.float64)) * (1 + 2 * unit(array.dtype) * direction)).astype(
        array.dtype
    )


def measured_bounds(program: Program, args: Sequence[Array]) -> list[Any]:
    """The bounds of `m2ml.equivalence`; a library function's error may also be that of a rounded argument."""
    backend = Checked()
    functions = set(program.primitives) - EXACT - ROUNDED - SUMS
    exact = backend.run_exact(program, args)
    runs = []
    for i in range(RUNS):
        generator = np.random.default_rng((0, i))
        moved = [_nudged(generator, x) for x in args] if functions else args
        runs.append(backend.run_perturbed(program, moved, Perturbation(generator, backend.apply)))
    avals = program.code.out_avals
    return [bound_of(a.dtype, y, [run[i] for run in runs]) for i, (a, y) in enumerate(zip(avals, exact, strict=True))]


def determined(case: Case, program: Program) -> Sequence[int]:
    """The outputs that only one value is right for: an unstable sort may order equal keys as it likes."""
    count = len(program.code.outputs)
    if case.group in DETERMINED:
        return DETERMINED[case.group]
    last = program.code.steps[-1].equation if program.code.steps else None
    if last is not None and last.name == "sort" and not last.params["is_stable"]:
        return range(last.params["num_keys"])
    return (0,) if last is not None and last.name == "approx_top_k" else range(count)


def matched(values: Array, expected: Array) -> Array:
    """``values`` with each row in the order that brings it closest to ``expected``."""
    result = values.copy()
    for index in np.ndindex(values.shape[:-1]):
        distance = np.abs(expected[index][:, None] - values[index][None])
        if np.isfinite(distance).all():
            result[index] = values[index][scipy.optimize.linear_sum_assignment(distance)[1]]
    return result


def failures(case: Case) -> list[str]:
    """What disagrees in one case; empty when nothing does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program, jitted, args = case.program()
        avals = program.code.in_avals
        host = [np.asarray(_host(x), aval.dtype) for x, aval in zip(jax.tree.leaves(args), avals, strict=True)]
        want = [_host(x) for x in jax.tree.leaves(jitted(*args))]
        bounds = measured_bounds(program, host)
        if case.group in UNORDERED:
            want[0] = matched(want[0], bounds[0].expected)
        reports = [judge(str(i), want[i], bounds[i]) for i in determined(case, program)]
    return [
        f"{case.name}, result {r.path}: {r.mismatch or f'{r.difference:.3g} off, {r.worst:.3g} of the bound'}"
        for r in reports
        if not r.ok
    ]


def _attempt(case: Case) -> list[str]:
    try:
        return failures(case)
    except Exception as error:
        return [f"{case.name}: {type(error).__name__}: {error}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", action="append", help="only this group; may be repeated")
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="at most so many cases per group")
    options = parser.parse_args()
    total = passed = 0
    for group in options.group or sorted(cases()):
        begin, chosen = time.perf_counter(), spread(cases()[group], min(options.limit, len(cases()[group])))
        results = [_attempt(case) for case in chosen]
        good = sum(not result for result in results)
        total, passed = total + len(results), passed + good
        print(f"{group}: {good} of {len(results)} in {time.perf_counter() - begin:.1f} s", flush=True)
        for line in (line for result in results for line in result):
            print(f"    {line[:300]}", flush=True)
    print(f"all: {passed} of {total}")
    return int(passed != total)


if __name__ == "__main__":
    sys.exit(main())
