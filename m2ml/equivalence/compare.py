"""`compare`: run a function on every backend and hold each result against the reference's bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from m2ml import arrays, compat
from m2ml.equivalence.bounds import RUNS, Bound, Perturbation, bound_of
from m2ml.errors import Disagreement, M2mlError
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

#: Perturbed runs behind a verdict that a backend disagrees: a tie passes for decided in one of 2^SECOND_LOOK cases.
SECOND_LOOK = 16


@dataclass(frozen=True)
class OutputReport:
    """One output of one backend. ``worst`` is its largest distance from the reference in units of the bound."""

    path: str
    dtype: str
    difference: float
    worst: float
    index: tuple[int, ...]
    unstable: int
    mismatch: str = ""

    @property
    def ok(self) -> bool:
        return not self.mismatch and self.worst <= 1.0


@dataclass(frozen=True)
class BackendReport:
    """What one backend gave; ``error`` is set when it gave nothing."""

    backend: str
    outputs: tuple[OutputReport, ...]
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and all(output.ok for output in self.outputs)


@dataclass(frozen=True)
class Report:
    """The result of `compare`. ``str()`` of it is a table; `check` raises when a backend disagrees."""

    name: str
    backends: tuple[BackendReport, ...]

    @property
    def ok(self) -> bool:
        return all(report.ok for report in self.backends)

    def check(self) -> Report:
        """Return self, or raise `m2ml.Disagreement` with the table."""
        if not self.ok:
            raise Disagreement(str(self))
        return self

    def __str__(self) -> str:
        lines = [f"{self.name} against the reference"]
        for report in self.backends:
            lines.append(f"  {report.backend}: {report.error or ('agrees' if report.ok else 'DISAGREES')}")
            for out in report.outputs:
                where = f" at {list(out.index)}" if out.index else ""
                said = out.mismatch or f"largest difference {out.difference:.3g}, {out.worst:.3g} of the bound{where}"
                unstable = f", {out.unstable} elements decided by rounding" if out.unstable else ""
                lines.append(f"    {out.path or 'result'} {out.dtype}: {said}{unstable}")
        return "\n".join(lines)


def measured_bounds(program: Program, args: Sequence[Any], *, seed: int = 0, runs: int = RUNS) -> list[Bound]:
    """The bound of each output leaf of ``program`` on host arrays ``args``, from ``1 + runs`` runs of the reference."""
    reference: Any = registry.get("reference")
    exact = reference.run_exact(program, args)
    perturbed = [
        reference.run_perturbed(program, args, Perturbation(np.random.default_rng((seed, i)), reference.apply))
        for i in range(runs)
    ]
    avals = [compat.physical_aval(a) for a in program.jaxpr.out_avals]
    return [
        bound_of(a.dtype, y, [run[i] for run in perturbed]) for i, (a, y) in enumerate(zip(avals, exact, strict=True))
    ]


def judge(path: str, got: np.ndarray[Any, Any], bound: Bound) -> OutputReport:
    """Hold one output against its bound: same shape and dtype, every element within its distance."""
    if got.shape != bound.expected.shape or got.dtype != bound.dtype:
        said = f"got {got.dtype.name}{list(got.shape)}, expected {bound.dtype.name}{list(bound.expected.shape)}"
        return OutputReport(path, got.dtype.name, np.inf, np.inf, (), 0, said)
    wide = got if bound.dtype.kind in "biu" else got.astype(complex if got.dtype.kind == "c" else float)
    with np.errstate(all="ignore"):
        expected = bound.expected.astype(bound.dtype).astype(wide.dtype)
        overflow = ~np.isfinite(expected) & np.isfinite(bound.expected) if wide.dtype.kind in "fc" else False
        same = (
            (wide == expected) | (np.isnan(wide) & np.isnan(expected)) if wide.dtype.kind in "fc" else wide == expected
        )
        exact = np.where(overflow, expected, bound.expected)
        distance = (
            np.abs(wide.astype(exact.dtype) - exact) if wide.dtype.kind in "fc" else (wide != expected).astype(float)
        )
        ratio = distance / bound.allowed
    ratio = np.where(same | bound.unstable, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    distance = np.where(same | bound.unstable, 0.0, distance)
    if not ratio.size:
        return OutputReport(path, got.dtype.name, 0.0, 0.0, (), 0)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    worst = float(ratio.max())
    return OutputReport(path, got.dtype.name, float(np.max(distance)), worst, index, int(bound.unstable.sum()))


def physical(leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf as the NumPy array that holds it (typed keys as uint32)."""
    host = arrays.to_host(leaf)
    return np.asarray(jax.random.key_data(host) if isinstance(host, jax.Array) else host)


def canonical(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``host`` in the dtype JAX would give it: float64 becomes float32 unless x64 is enabled."""
    return np.asarray(host, jax.dtypes.canonicalize_dtype(host.dtype))


def compare(fn: Callable[..., Any], *args: Any, backends: Iterable[str] | None = None, **kwargs: Any) -> Report:
    """Run ``fn`` on every backend that runs here (or those named) and compare with the reference.

    The reference evaluates the program in float64, and a few more times with every equation's result moved by
    its rounding error; the spread of those runs, times a factor, is what a backend may differ by. A backend that
    differs by more is judged again by the spread of more runs, so that a tie which rounding decides is seen as one.

    >>> import m2ml, jax.numpy as jnp
    >>> m2ml.compare(lambda x: jnp.tanh(x) + 1, jnp.arange(3.0), backends=["cpu"]).ok
    True
    """
    staged: Staged = getattr(fn, "staged", None) or Staged(fn)
    program = staged.trace(args, kwargs)
    host = [canonical(physical(x)) for x in program_leaves(staged, args, kwargs)]
    names = [n for n in registry.available() if n != "reference"] if backends is None else list(backends)
    results = {name: _run_backend(name, program, host) for name in names}
    report = judge_all(program, results, measured_bounds(program, host))
    return report if report.ok else judge_all(program, results, measured_bounds(program, host, runs=SECOND_LOOK))


def program_leaves(staged: Staged, args: Sequence[Any], kwargs: Any) -> list[Any]:
    """The dynamic leaves of a call, in the order of its program's inputs, each with a dtype."""
    dynamic, _ = staged.split(args, kwargs)
    return [x if hasattr(x, "dtype") else np.asarray(x, arrays.aval_of(x).dtype) for x in jax.tree.leaves(dynamic)]


def run_program(name: str, program: Program, host: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Outputs of ``program`` on backend ``name`` as NumPy arrays."""
    backend = registry.get(name)
    return [backend.to_host(x) for x in backend.compile(program)(*map(backend.from_host, host))]


def _run_backend(name: str, program: Program, host: Sequence[Any]) -> list[np.ndarray[Any, Any]] | str:
    """The outputs of ``program`` on a backend, or why there are none."""
    try:
        return run_program(name, program, host)
    except (M2mlError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def judge_all(program: Program, results: Mapping[str, list[Any] | str], bounds: Sequence[Bound]) -> Report:
    """Hold every backend's outputs (or its reason for having none) against the bounds."""
    shape = jax.tree.unflatten(program.out_tree, list(range(len(bounds))))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]
    reports = []
    for name, outs in results.items():
        if isinstance(outs, str):
            reports.append(BackendReport(name, (), outs))
        else:
            judged = tuple(judge(p, y, b) for p, y, b in zip(paths, outs, bounds, strict=True))
            reports.append(BackendReport(name, judged))
    return Report(program.name, tuple(reports))
