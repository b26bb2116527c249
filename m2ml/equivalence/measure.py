"""Measure the bounds of a program and run it on backends: what `compare`, `auto`, bisection and fuzzing share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from m2ml import arrays, compat
from m2ml.equivalence.bounds import RUNS, Bound, Spread
from m2ml.equivalence.effects import silent
from m2ml.equivalence.judgement import judge
from m2ml.equivalence.perturbation import Perturbation
from m2ml.equivalence.report import BackendReport, Report
from m2ml.equivalence.scales import Scales
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

Array = np.ndarray[Any, Any]

#: Perturbed runs behind a verdict that a backend disagrees: a tie passes for decided in one of 2^SECOND_LOOK cases.
SECOND_LOOK = 16


def measured_bounds(program: Program, args: Sequence[Any], *, seed: int = 0, runs: int = RUNS) -> list[Bound]:
    """The bound of each output leaf of ``program`` on host arrays ``args``, from ``1 + runs`` runs of the reference."""
    reference: Any = registry.get("reference")
    code = silent(program.code)
    exact = reference.run_code(code, args)
    spreads = [Spread(compat.physical_aval(a).dtype, y) for a, y in zip(program.jaxpr.out_avals, exact, strict=True)]
    branches = any(equation.name in ("cond", "while") for equation in code.equations())
    scales = None if branches else Scales()  # runs that branch differently differ by more than roundings
    for i in range(runs):
        if scales:
            scales.again()
        generator = np.random.default_rng((seed, i))
        perturbation = Perturbation.of_run(i, generator, reference.apply, scales)
        for spread, run in zip(spreads, type(reference)(perturbation).run_code(code, args), strict=True):
            spread.add(run)
    return [spread.bound() for spread in spreads]


def physical(leaf: Any) -> Array:
    """A leaf as the NumPy array that holds it (typed keys as uint32)."""
    host = arrays.to_host(leaf)
    return np.asarray(jax.random.key_data(host) if isinstance(host, jax.Array) else host)


def canonical(host: Array) -> Array:
    """``host`` in the dtype JAX would give it: float64 becomes float32 unless x64 is enabled."""
    return np.asarray(host, jax.dtypes.canonicalize_dtype(host.dtype))


def host_leaves(staged: Staged, args: Sequence[Any], kwargs: Any) -> list[Array]:
    """The dynamic leaves of a call as host arrays, as its program takes them."""
    return [canonical(physical(leaf)) for leaf in program_leaves(staged, args, kwargs)]


def program_leaves(staged: Staged, args: Sequence[Any], kwargs: Any) -> list[Any]:
    """The dynamic leaves of a call, in the order of its program's inputs, each with a dtype."""
    dynamic, _ = staged.split(args, kwargs)
    return [x if hasattr(x, "dtype") else np.asarray(x, arrays.aval_of(x).dtype) for x in jax.tree.leaves(dynamic)]


def run_program(name: str, program: Program, host: Sequence[Array]) -> list[Array]:
    """Outputs of ``program`` on backend ``name`` as NumPy arrays."""
    backend = registry.get(name)
    return [backend.to_host(x) for x in backend.compile(program)(*map(backend.from_host, host))]


def output_paths(program: Program) -> list[str]:
    """Where each output leaf stands in the result: ``['loss']``."""
    shape = jax.tree.unflatten(program.out_tree, list(range(program.out_tree.num_leaves)))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]


def judge_all(
    program: Program,
    results: Mapping[str, list[Any] | str],
    bounds: Sequence[Bound],
    paths: Sequence[str] | None = None,
) -> Report:
    """Hold every backend's outputs (or its reason for having none) against the bounds; ``paths`` name the outputs."""
    names, reports = output_paths(program) if paths is None else paths, []
    for name, outs in results.items():
        if isinstance(outs, str):
            reports.append(BackendReport(name, (), outs))
        elif len(outs) != len(bounds):
            reports.append(BackendReport(name, (), f"it gave {len(outs)} outputs instead of {len(bounds)}"))
        else:
            judged = tuple(judge(p, y, b) for p, y, b in zip(names, outs, bounds, strict=True))
            reports.append(BackendReport(name, judged))
    return Report(program.name, tuple(reports))


def judge_twice(
    program: Program,
    results: Mapping[str, list[Any] | str],
    bounds_of: Callable[[int], Sequence[Bound]],
    paths: Sequence[str] | None = None,
) -> tuple[Report, Sequence[Bound]]:
    """`judge_all` by the bounds of a few runs; what lies outside them is judged again by those of `SECOND_LOOK`.

    ``bounds_of`` gives the bounds by so many runs. Returned with the report are the bounds that it was made by.
    """
    bounds = bounds_of(RUNS)
    report = judge_all(program, results, bounds, paths)
    if not report.ok:
        del bounds  # as large as the outputs: not both at once
        bounds = bounds_of(SECOND_LOOK)
        report = judge_all(program, results, bounds, paths)
    return report, bounds
