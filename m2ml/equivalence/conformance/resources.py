"""What a backend does with memory and threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from m2ml.equivalence.conformance.suite import Check, NotRun, Subject, checks_of, trace

#: Elements of one array of the memory checks: 2 MB of float32.
_ELEMENTS = 1 << 19
_BYTES = 4 * _ELEMENTS
_CALLS = 48


def checks(subject: Subject) -> Iterable[Check]:
    memory = (memory_is_returned, memory_is_counted, buffers_do_not_leak)
    return checks_of("resources", (*memory, two_threads_call_one_executable, a_thread_reads_the_results_of_another))


def _executable(subject: Subject) -> tuple[Callable[..., Any], Any]:
    host = np.linspace(-1, 1, _ELEMENTS, dtype=np.float32)
    backend = subject.backend
    run = backend.compile(trace(lambda x: jnp.sin(x) * 2 + x, host))
    array = backend.from_host(host)
    backend.wait(run(array))
    return run, array


def _active(subject: Subject) -> int:
    gc.collect()
    active = subject.backend.memory().active
    if active is None:
        raise NotRun("memory() does not say how many bytes are held")
    return active


def memory_is_counted(subject: Subject) -> None:
    run, array = _executable(subject)
    before = _active(subject)
    held = [run(array) for _ in range(4)]
    for outs in held:
        subject.backend.wait(outs)
    during, peak = _active(subject), subject.backend.memory().peak
    assert during - before >= 4 * _BYTES, f"memory() grew by {during - before} bytes while {4 * _BYTES} more are held"
    assert peak is None or peak >= during, f"the peak is {peak} bytes, but {during} are held"


def memory_is_returned(subject: Subject) -> None:
    run, array = _executable(subject)
    before = _active(subject)
    for _ in range(_CALLS):
        subject.backend.wait(run(array))
    after = _active(subject)
    assert after - before < _BYTES, f"memory() holds {after - before} bytes more after {_CALLS} calls were dropped"


def _resident() -> int:
    """Bytes of physical memory that the process holds (Linux)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        raise NotRun("this system does not say how much memory a process holds now")
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()


def buffers_do_not_leak(subject: Subject) -> None:
    """The memory of the process itself, whatever the backend says of its own."""
    run, array = _executable(subject)
    for _ in range(4):
        subject.backend.wait(run(array))
    gc.collect()
    before = _resident()
    for _ in range(_CALLS):
        subject.backend.wait(run(array))
    gc.collect()
    grown = _resident() - before
    assert grown < _CALLS * _BYTES // 2, f"the process holds {grown} bytes more after {_CALLS} calls were dropped"


def _in_threads(subject: Subject, jobs: Iterable[Callable[[], None]]) -> None:
    """Run the jobs at the same time; raises the first error, or TimeoutError when one does not return."""
    errors: list[Exception] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(subject.timeout)
        if thread.is_alive():
            raise TimeoutError(f"a thread that calls the backend did not return within {subject.timeout:g} s")
    if errors:
        raise errors[0]


def two_threads_call_one_executable(subject: Subject) -> None:
    """Each thread gets its own results, as if it were alone; compilation is under way in both."""
    backend = subject.backend
    hosts = [np.linspace(i, i + 1, 1000, dtype=np.float32) for i in range(2)]
    program = trace(lambda x: (jnp.cumsum(x) * 2, jnp.sort(-x)), hosts[0])
    shared = backend.compile(program)
    alone = [[backend.to_host(y) for y in shared(backend.from_host(host))] for host in hosts]

    def job(number: int) -> None:
        own = backend.compile(trace(lambda x: jnp.cumsum(x) * 2, hosts[number]))
        for run in (shared, own) * 20:
            outs = [backend.to_host(y) for y in run(backend.from_host(hosts[number]))]
            for got, expected in zip(outs, alone[number], strict=False):
                np.testing.assert_array_equal(got, expected, "a call got the results of another thread's call")

    _in_threads(subject, [lambda i=i: job(i) for i in range(2)])  # type: ignore[misc]


def a_thread_reads_the_results_of_another(subject: Subject) -> None:
    backend, x = subject.backend, np.linspace(0, 1, 100, dtype=np.float32)
    run = backend.compile(trace(lambda x: jnp.cumsum(x), x))
    made: list[Any] = []
    _in_threads(subject, [lambda: made.extend(run(backend.from_host(x)))])
    np.testing.assert_array_equal(backend.to_host(made[0]), backend.to_host(run(backend.from_host(x))[0]))
