"""`compare`: run a function on every backend and hold each result against the reference's bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.calls import Call, Grad, call_of
from m2ml.equivalence.effects import check_callbacks, refuse_side_effects, where_nan_begins
from m2ml.equivalence.isolation import isolated as make_isolated
from m2ml.equivalence.measure import judge_twice, measured_bounds, run_program
from m2ml.equivalence.memory import refuse_to_swap
from m2ml.equivalence.report import BackendReport, Divergence, Report
from m2ml.errors import M2mlError, reason
from m2ml.plugins import registry


def compare(
    fn: Callable[..., Any],
    *args: Any,
    backends: Iterable[str] | None = None,
    grad: Grad = False,
    isolated: bool | float = False,
    **kwargs: Any,
) -> Report:
    """Run ``fn`` on every backend that runs here (or those named) and compare with the reference.

    The reference evaluates the program in float64, and a few more times with every equation's result moved by
    its rounding error; the spread of those runs, times a factor, is what a backend may differ by. A backend that
    differs by more is judged again by the spread of more runs, so that a tie which rounding decides is seen as one;
    if it still disagrees, the first equation that leaves its bound is named with the line it comes from.

    Args:
      fn: a function, or one made by `m2ml.jit` (whose static and donated arguments are kept). Whole Flax NNX modules
        may be arguments; their state afterwards is compared too, and they are not updated.
      backends: names; every backend but the reference if not given.
      grad: also compare gradients: ``True`` with respect to every floating leaf of the arguments, or the arguments
        chosen by position or name. Differentiated is the result if it is one floating scalar, else the sum of all
        floating results times fixed random numbers. Integers, booleans and random keys have no gradient.
      isolated: run each backend in a process of its own; a number is the most seconds it may take.

    A host callback (``jax.pure_callback``) must be deterministic; ``jax.debug`` callbacks run once per backend and not
    on the reference; a function with an ``io_callback`` is refused. Raises `m2ml.OutOfMemory` before it starts when
    the comparison needs more memory than is free, and what tracing ``fn`` raises.

    >>> import m2ml, jax.numpy as jnp
    >>> m2ml.compare(lambda x: jnp.tanh(x) + 1, jnp.arange(3.0), backends=["cpu"], grad=True).ok
    True
    """
    call = call_of(fn, args, kwargs, grad)
    names = _known(backends) if backends is not None else [n for n in registry.available() if n != "reference"]
    if not names:
        raise M2mlError("compare has no backend to hold against the reference: name one that `m2ml backends` lists")
    refuse_side_effects(call.program)
    refuse_to_swap(call.program, names)
    check_callbacks(call.program, call.host)
    from m2ml.equivalence.bisect import first_disagreement  # most of what importing m2ml would cost more

    alone = make_isolated(fn, args, kwargs, grad, call, isolated) if isolated else None
    run = alone.run if alone else lambda name: run_program(name, call.program, call.host)
    bisect = alone.bisect if alone else lambda name: first_disagreement(call.program, call.host, name)
    results = {name: _outputs(run, name) for name in names}
    report, bounds = judge_twice(
        call.program, results, lambda runs: measured_bounds(call.program, call.host, runs=runs), call.paths
    )
    notes = _notes(call, bounds)
    del bounds
    return replace(report, backends=tuple(_located(bisect, backend) for backend in report.backends), notes=notes)


def _known(backends: Iterable[str]) -> list[str]:
    """The named backends; one that is not registered raises `m2ml.BackendNotFound`."""
    names = [backends] if isinstance(backends, str) else list(backends)
    for name in names:
        if name not in registry.names():
            registry.get(name)
    return names


def _outputs(run: Callable[[str], list[Any]], name: str) -> list[Any] | str:
    """The outputs of a backend, or why there are none."""
    try:
        return run(name)
    except Exception as error:  # whatever an engine raises is what it gave; the others still run
        return reason(error)


def _located(bisect: Callable[[str], Divergence | None], report: BackendReport) -> BackendReport:
    """The report of a backend that disagrees, with the first equation that does."""
    if report.ok or report.error:
        return report
    try:
        return replace(report, divergence=bisect(report.backend))
    except M2mlError:  # the process that looked for it died; the disagreement stands
        return report


def _notes(call: Call, bounds: Sequence[Bound]) -> tuple[str, ...]:
    """Which results of the reference hold NaN, and where it begins."""
    values = zip(call.paths, (bound.expected for bound in bounds), strict=True)
    nan = [path or "the result" for path, x in values if x.dtype.kind in "fc" and np.isnan(x).any()]
    if not nan:
        return ()
    begins = where_nan_begins(call.program, call.host, call.inputs)
    more = f" and {len(nan) - 4} more" if len(nan) > 4 else ""
    return (f"NaN in {', '.join(nan[:4])}{more}{': ' if begins else ''}{begins}",)
