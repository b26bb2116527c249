"""JAX's own primitive cases, run on a backend: as they are, under ``vmap``, and differentiated.

The JAX wheel holds one ready-made case per primitive, dtype and parameter (`test_harnesses`; needs absl-py, which is
in ``m2ml[kit]``). A backend's result must lie within the bound that the reference measures for the case: integers
exact, floats within the spread of perturbed runs (`m2ml.equivalence.compare`). For the reference itself the result
that must lie there is that of JAX on the CPU, so the two tables together say how a backend compares with JAX.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from m2ml import compat
from m2ml.backend import Backend, Gap
from m2ml.equivalence.jax_results import Outcome as Outcome
from m2ml.equivalence.jax_results import Result as Result
from m2ml.equivalence.jax_results import summary as summary
from m2ml.equivalence.jax_results import table as table
from m2ml.equivalence.jax_transforms import TRANSFORMS as TRANSFORMS
from m2ml.equivalence.jax_transforms import Call, NotTransformable, Transform, batched, differentiated
from m2ml.equivalence.judgement import judge
from m2ml.equivalence.measure import SECOND_LOOK, measured_bounds, physical
from m2ml.equivalence.report import OutputReport
from m2ml.errors import M2mlError, UnsupportedPrimitive
from m2ml.plugins import registry
from m2ml.program import Program

Array = np.ndarray[Any, Any]

#: Groups whose first result is a set in no particular order.
UNORDERED = frozenset({"eig"})

#: Groups that may take any of equal operands, or give results in any order: all their cotangents are one.
TIES = UNORDERED | {"approx_top_k"}

#: Outputs that are determined, where others are so only up to a phase or the basis of a subspace.
DETERMINED = {"eig": (0,), "eigh": (1,), "svd": (0,)}

#: What JAX itself gets wrong on the CPU, each with a reproducer in ``tests/upstream``: no backend need agree with it.
UPSTREAM: tuple[Gap, ...] = (
    Gap("polygamma", "*", "JAX's zeta function is wrong below -8", case="grad(digamma_shape_bfloat16_*"),
    Gap("polygamma", "*", "JAX's zeta function is wrong below -8", case="grad(digamma_shape_float32_*"),
    Gap("*", "complex64", "JAX does not compile its own gradient of complex extrema", case="grad(reduce_window_m[ai]*"),
)

#: XLA's compiled programs are let go after this many cases.
_CLEAR_EVERY = 100


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """JAX's cases ask for 64-bit types, and an equation that falls back is a verdict: neither is news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Case:
    """One of JAX's cases, transformed. Its name is JAX's, or ``vmap(...)`` or ``grad(...)`` around it."""

    group: str
    harness: Any
    transform: Transform = "none"

    @property
    def name(self) -> str:
        name = str(self.harness.fullname)
        return name if self.transform == "none" else f"{self.transform}({name})"

    def call(self) -> Call:
        """The function and its arguments. Raises `NotTransformable` where JAX has no such transformation."""
        seed = zlib.crc32(str(self.harness.fullname).encode())
        fn, args = self.harness.dyn_fun, self.harness.dyn_args_maker(np.random.RandomState(seed))
        if self.transform == "none":
            return fn, args
        plain = _traced(self.name, fn, args)
        if self.transform == "grad":
            return differentiated(fn, args, determined(self.group, plain), alike=self.group in TIES)
        promised = ("unique_indices", "indices_are_sorted")
        fixed = any(equation.params.get(name) for equation in plain.code.equations() for name in promised)
        return batched(fn, args, fixed_integers=fixed)


@dataclass(frozen=True)
class Problem:
    """A case made ready: its program, its arguments on the host, and the outputs that only one value is right for."""

    case: Case
    program: Program
    host: Sequence[Array]
    judged: Sequence[int]
    run_jax: Callable[[], list[Array]] = field(repr=False)

    def wrong(self, results: Sequence[Array]) -> str:
        """What is wrong with ``results`` in a sentence, or nothing; judged again by more runs before it is said."""
        bad = self._outside(results, self._bounds)
        if bad:
            bad = self._outside(results, measured_bounds(self.program, self.host, runs=SECOND_LOOK))
        return "; ".join(_sentence(report) for report in bad)

    @functools.cached_property
    def _bounds(self) -> list[Any]:
        return measured_bounds(self.program, self.host)

    def _outside(self, results: Sequence[Array], bounds: Sequence[Any]) -> list[OutputReport]:
        if self.case.group in UNORDERED and self.case.transform != "grad":
            results = [matched(results[0], bounds[0].expected), *results[1:]]
        reports = [judge(f"result {i}", results[i], bounds[i]) for i in self.judged]
        return [report for report in reports if not report.ok]


def _sentence(report: OutputReport) -> str:
    said = report.mismatch or f"{report.difference:.3g} off at {list(report.index)}, {report.worst:.3g} of the bound"
    return f"{report.path} {report.dtype}: {said}"


def _traced(name: str, fn: Callable[..., Any], args: Sequence[Any]) -> Program:
    closed, out_tree, donated = compat.trace(jax.jit(fn), args, {})
    return Program(name, closed, jax.tree.structure((tuple(args), {})), out_tree, donated)


@_quietly()
def problem(case: Case) -> Problem:
    """Make ``case`` ready. Raises `NotTransformable`."""
    fn, args = case.call()
    program = _traced(case.name, fn, args)
    leaves = zip(jax.tree.leaves(args), program.code.in_avals, strict=True)
    host = [np.asarray(physical(leaf), aval.dtype) for leaf, aval in leaves]
    every = range(len(program.code.outputs))
    judged = every if case.transform == "grad" else determined(case.group, program)
    return Problem(case, program, host, judged, lambda: [physical(y) for y in jax.tree.leaves(jax.jit(fn)(*args))])


def determined(group: str, program: Program) -> Sequence[int]:
    """The outputs that only one value is right for: an unstable sort may order equal keys as it likes."""
    if group in DETERMINED:
        return DETERMINED[group]
    last = program.code.steps[-1].equation if program.code.steps else None
    if last is not None and last.name == "sort" and not last.params["is_stable"]:
        return range(last.params["num_keys"])
    return (0,) if last is not None and last.name == "approx_top_k" else range(len(program.code.outputs))


def matched(values: Array, expected: Array) -> Array:
    """``values`` with each row in the order that brings it closest to ``expected``."""
    from scipy.optimize import linear_sum_assignment

    result = values.copy()
    for index in np.ndindex(values.shape[:-1]):
        distance = np.abs(expected[index][:, None] - values[index][None])
        if np.isfinite(distance).all():
            result[index] = values[index][linear_sum_assignment(distance)[1]]
    return result


# Which cases there are --------------------------------------------------------------------------------------


@functools.cache
@_quietly()
def cases() -> Mapping[str, tuple[Case, ...]]:
    """Every case that JAX implements on the CPU, by group, in an order that does not depend on the process."""
    try:
        from jax._src.internal_test_util import test_harnesses
    except ImportError as error:
        raise M2mlError(f"JAX's own cases cannot be loaded ({error}); pip install 'm2ml[kit]'") from error
    groups: dict[str, list[Case]] = defaultdict(list)
    for harness in sorted(test_harnesses.all_harnesses, key=lambda harness: str(harness.fullname)):
        if harness.filter("cpu"):
            groups[harness.group_name].append(Case(harness.group_name, harness))
    return {group: tuple(groups[group]) for group in sorted(groups)}


def spread(items: Sequence[Case], count: int) -> list[Case]:
    """At most ``count`` of ``items``, evenly spread, the last included."""
    count = min(count, len(items))
    chosen = {round(i * (len(items) - 1) / max(count - 1, 1)) for i in range(count)}
    return [items[i] for i in sorted(chosen)]


# What came of them ------------------------------------------------------------------------------------------


def outcome(case: Case, backend: Backend) -> Outcome:
    """Run one case on ``backend`` and hold it to the reference's bound and to the declared gaps."""
    try:
        return attempt(problem(case), backend)
    except NotTransformable as error:
        return Outcome(case.name, "excluded", str(error))


def attempt(ready: Problem, backend: Backend) -> Outcome:
    """Like `outcome`, for a case that is ready."""
    name, known = ready.case.name, declared(UPSTREAM, ready)
    gap = declared(backend.gaps, ready) or (known if backend.name == "reference" else None)
    said, fell_back = _tried(ready, backend, strict=True)
    if gap and not said:
        return Outcome(name, "failed", f"a declared gap passes ({gap.reason}): take it out")
    if gap and not fell_back:
        return Outcome(name, "gap", gap.reason)
    if gap and fell_back:
        said, _ = _tried(ready, backend, strict=False)
    if said and known:
        return Outcome(name, "gap", known.reason)
    if said:
        return Outcome(name, "failed", said)
    return Outcome(name, "fallback", gap.reason) if gap else Outcome(name, "passed")


def declared(gaps: Iterable[Gap], ready: Problem) -> Gap | None:
    """The first of ``gaps`` that speaks of a case, if any."""
    return next((gap for gap in gaps if gap.covers(ready.case.name, ready.program.code.equations())), None)


@_quietly()
def _tried(ready: Problem, backend: Backend, *, strict: bool) -> tuple[str, bool]:
    """What is wrong with the backend's results, or nothing; and whether it lacks a primitive."""
    try:
        return ready.wrong(_results(ready, backend, strict)), False
    except UnsupportedPrimitive as error:
        return _line(error), True
    except Exception as error:  # a backend may fail in any way; it costs this case only
        return _line(error), False


def _results(ready: Problem, backend: Backend, strict: bool) -> list[Array]:
    if backend.name == "reference":
        return ready.run_jax()
    executable = backend.compile(replace(ready.program, strict=strict))
    return [backend.to_host(y) for y in executable(*map(backend.from_host, ready.host))]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run(
    backend: str,
    *,
    transform: Transform = "none",
    groups: Iterable[str] | None = None,
    limit: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Run JAX's cases on ``backend``: a `Result` per group.

    ``groups`` names some of `cases`; ``limit`` takes at most so many of each, evenly spread. ``progress`` is called
    as ``progress(group, done, total)`` after each case.
    """
    engine, found = registry.get(backend), cases()
    names = list(found) if groups is None else list(groups)
    for name in set(names) - set(found):
        raise M2mlError(f"JAX has no cases of a group {name!r}; there are {', '.join(found)}")
    chosen = {name: spread(found[name], limit or len(found[name])) for name in names}
    total, done, results = sum(map(len, chosen.values())), 0, []
    for name, members in chosen.items():
        outcomes = []
        for case in members:
            outcomes.append(outcome(replace(case, transform=transform), engine))
            done += 1
            if done % _CLEAR_EVERY == 0:
                jax.clear_caches()
            if progress is not None:
                progress(name, done, total)
        results.append(summary(backend, transform, name, outcomes))
    return results
