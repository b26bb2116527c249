"""`compare`: run a function on every backend and hold each result against the reference's bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from m2ml.equivalence.bisect import first_disagreement
from m2ml.equivalence.measure import (
    SECOND_LOOK,
    canonical,
    judge_all,
    measured_bounds,
    physical,
    program_leaves,
    run_program,
)
from m2ml.equivalence.report import Report
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged


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
    if report.ok:
        return report
    report = judge_all(program, results, measured_bounds(program, host, runs=SECOND_LOOK))
    located = [
        b if b.ok or b.error else replace(b, divergence=first_disagreement(program, host, b.backend))
        for b in report.backends
    ]
    return replace(report, backends=tuple(located))


def _run_backend(name: str, program: Program, host: Sequence[Any]) -> list[Any] | str:
    """The outputs of ``program`` on a backend, or why there are none."""
    try:
        return run_program(name, program, host)
    except Exception as error:  # whatever an engine raises is what it gave; the others still run
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
