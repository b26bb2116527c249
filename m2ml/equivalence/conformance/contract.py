"""The protocol itself: names, devices, declared gaps, arrays in and out, memory."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.extend.core.primitives
import numpy as np

from m2ml import compat
from m2ml.backend import Backend, Device, Gap, MemoryStats
from m2ml.equivalence.conformance.suite import Check, Subject, checks_of, trace
from m2ml.plugins import registry


def checks(subject: Subject) -> Iterable[Check]:
    functions = (has_every_method, names_its_devices, declares_gaps_of_what_exists, knows_its_arrays)
    more = (says_what_memory_it_holds, waits_for_nothing_and_for_something, gives_outputs_in_order)
    return checks_of("contract", (*functions, *more))


def has_every_method(subject: Subject) -> None:
    assert isinstance(subject.backend, Backend), "an attribute or a method of m2ml.Backend is missing"
    assert isinstance(subject.backend.name, str)


def names_its_devices(subject: Subject) -> None:
    devices = subject.backend.devices()
    assert devices, "devices() is empty: raise m2ml.BackendUnavailable where there is none"
    assert all(isinstance(d, Device) and d.kind and d.name for d in devices), devices


def known_primitives() -> set[str]:
    """The primitives that JAX's public modules show, that the reference has, and ``"*"``."""
    modules = (jax.lax, jax.lax.linalg, jax.extend.core.primitives)
    names = {getattr(getattr(m, key), "name", "") for m in modules for key in dir(m) if key.endswith("_p")}
    reference = registry.get("reference")
    rules = set(getattr(reference, "rules", ())) | {gap.primitive for gap in reference.gaps}
    return {compat.RENAMED.get(name, name) for name in names} | rules | {"*"}


def declares_gaps_of_what_exists(subject: Subject) -> None:
    known = known_primitives()
    for gap in subject.backend.gaps:
        assert isinstance(gap, Gap), f"gaps holds a {type(gap).__name__}, not an m2ml.Gap"
        assert gap.reason.strip(), f"the gap of {gap.primitive} {gap.dtype} has no reason"
        assert (gap.primitive, gap.dtype) != ("*", "*"), "a gap of everything excuses everything"
        assert gap.primitive in known, f"there is no primitive {gap.primitive!r}"
    assert len(set(subject.backend.gaps)) == len(subject.backend.gaps), "a gap is declared twice"


def knows_its_arrays(subject: Subject) -> None:
    array = subject.backend.from_host(np.ones(3, np.float32))
    assert subject.backend.owns(array)
    for other in (object(), "text", 1.5, None, [1.0]):
        assert not subject.backend.owns(other), f"owns({other!r}) must be False"


def says_what_memory_it_holds(subject: Subject) -> None:
    stats = subject.backend.memory()
    assert isinstance(stats, MemoryStats)
    assert stats.active is None or stats.peak is None or 0 <= stats.active <= stats.peak, stats


def waits_for_nothing_and_for_something(subject: Subject) -> None:
    backend = subject.backend
    backend.wait([])
    backend.wait([backend.from_host(np.ones(3, np.float32))])
    program = trace(lambda x: jax.numpy.sin(x) * 2, np.ones(3, np.float32))
    backend.wait(backend.compile(program)(backend.from_host(np.ones(3, np.float32))))


def gives_outputs_in_order(subject: Subject) -> None:
    """Inputs that are outputs, an output given twice, an unread input, a constant."""
    x, y, unread = np.float32(2.0), np.arange(3, dtype=np.int32), np.zeros((0, 2), np.float32)
    program = trace(lambda x, y, z: (y, x, x, x + 1, np.float32(7.0)), x, y, unread)
    for got, expected in zip(subject.run(program, x, y, unread), (y, x, x, x + 1, 7.0), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert isinstance(got, np.ndarray)
