"""Ops: each registered one on the backend, by its kernels and by its definition, against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

import m2ml.ops  # noqa: F401 - registers the ops that come with m2ml
from m2ml.equivalence.conformance.suite import REFUSALS, Check, NotRun, Subject, trace
from m2ml.equivalence.ops import Implementation, check_gradient, check_laws, check_values, check_vmap, implementations
from m2ml.op import Op, Sample, ops

#: Samples of each op that are checked, evenly spread.
SAMPLES = 5


def checks(subject: Subject) -> Iterable[Check]:
    for op in ops.values():
        yield Check("ops", f"{op.name} values", _each(op, check_values, np.float32))
        yield Check("ops", f"{op.name} gradients", _each(op, check_gradient, np.float32))
        yield Check("ops", f"{op.name} laws", _laws(op))
        yield Check("ops", f"{op.name} vmap", _each(op, check_vmap))


def spread(op: Op) -> list[Sample]:
    samples = list(op.samples())
    return samples[:: max(len(samples) // SAMPLES, 1)]


def _each(op: Op, check: Callable[..., None], *more: Any) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        _require(op, subject)
        for sample in spread(op):
            check(op, sample, *more, implementations(op, [subject.backend.name]))

    return run


def _laws(op: Op) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        _require(op, subject)
        on: Implementation
        for on in implementations(op, [subject.backend.name]):
            for sample in spread(op):
                check_laws(op, sample, np.float32, on)

    return run


def _require(op: Op, subject: Subject) -> None:
    """An op whose definition meets a declared gap is reported as one, not judged."""
    samples = spread(op)
    if not samples:
        raise NotRun(f"op {op.name} has no samples")
    program = trace(lambda *args: op(*args, **samples[0].static), *samples[0].args)
    try:
        subject.backend.compile(program)
    except REFUSALS as error:
        raise subject.refused(program.code, error) from error
    finally:
        jax.clear_caches()
