"""The errors of the contract, each one sentence, and a backend that is as good after an error as before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.backend import Backend
from m2ml.debug import debug_executable
from m2ml.equivalence.conformance import dtypes
from m2ml.equivalence.conformance.suite import Check, NotRun, Subject, checks_of, one_sentence, trace
from m2ml.errors import ExecutionError, NotANumber, OutOfMemory, UnsupportedPrimitive

#: The shape of an array that fits into no address space: 1 PiB of float32.
_TOO_LARGE = (4096, 4096, 4096, 4096)


def checks(subject: Subject) -> Iterable[Check]:
    functions = (an_unknown_primitive, the_first_nan, an_array_too_large, a_callback_that_raises)
    more = (too_few_arguments, an_unsupported_dtype)
    return checks_of("errors", (*functions, *more))


def _raised(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _still_works(subject: Subject) -> None:
    subject.agree(lambda x: jnp.sin(x) @ x, np.linspace(-1, 1, 5, dtype=np.float32))


def _unknown() -> Any:
    from jax.extend import core

    primitive = core.Primitive("conformance_unknown")
    primitive.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    return primitive


def an_unknown_primitive(subject: Subject) -> None:
    """Refused with `m2ml.UnsupportedPrimitive`, which names the primitive and the types of its operands."""
    x = np.ones((2, 3), np.float32)
    primitive = _unknown()
    error = _raised(lambda: subject.run(trace(lambda x: primitive.bind(jnp.sin(x)) + 1, x), x))
    assert isinstance(error, UnsupportedPrimitive), f"UnsupportedPrimitive is due, not {type(error).__name__}: {error}"
    text = one_sentence(error)
    assert "conformance_unknown" in text, text
    assert "float32[2,3]" in text, text
    _still_works(subject)


def the_first_nan(subject: Subject) -> None:
    """With ``debug=True`` equations run one at a time through ``apply``."""
    run = debug_executable(subject.backend, trace(lambda x: jnp.exp(jnp.log(x)) + 1, np.float32(1)))
    assert float(subject.backend.to_host(run(subject.backend.from_host(np.asarray(1, np.float32)))[0])) == 2.0
    error = _raised(lambda: run(subject.backend.from_host(np.asarray(-1, np.float32))))
    assert isinstance(error, NotANumber), error
    assert "log(float32[])" in one_sentence(error), error
    _still_works(subject)


def outgrow_memory(backend: Backend) -> Exception | None:
    """What a program raises whose result fits into no address space."""
    x = np.arange(4096, dtype=np.float32)

    def outer_sum(x: Any) -> Any:
        first, last = (jax.lax.broadcast_in_dim(x, _TOO_LARGE, (axis,)) for axis in (0, 3))
        return first + last

    try:
        backend.wait(backend.compile(trace(outer_sum, x))(backend.from_host(x)))
    except Exception as error:
        return error
    return None


#: In a process of its own, which some engines end where an allocation fails. Exit code 3: the backend is not there.
_OUTGROW = """
import sys
from m2ml.errors import BackendNotFound
from m2ml.equivalence.conformance.errors import outgrow_memory
from m2ml.plugins import registry
try:
    backend = registry.get(sys.argv[1])
except BackendNotFound:
    sys.exit(3)
error = outgrow_memory(backend)
print(type(error).__name__, error)
"""


def an_array_too_large(subject: Subject) -> None:
    """`m2ml.OutOfMemory`; the process goes on."""
    command = [sys.executable, "-c", _OUTGROW, subject.backend.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise NotRun("the backend is registered in this process only, and the check may end its process")
    assert not done.returncode, f"the process ended with {done.returncode} where an allocation failed"
    name, _, text = done.stdout.partition(" ")
    assert name == OutOfMemory.__name__, f"OutOfMemory is due, not {done.stdout.strip()}"
    assert len(text.splitlines()) == 1, f"an error is one sentence on one line; OutOfMemory says {text!r}"


def a_callback_that_raises(subject: Subject) -> None:
    """An exception in the middle of a call is an error of the call, and costs this call only."""

    def fail(x: Any) -> Any:
        raise ValueError("on purpose")

    def fn(x: Any) -> Any:
        return jnp.sin(jax.pure_callback(fail, jax.ShapeDtypeStruct((3,), jnp.float32), x * 2))

    x = np.ones(3, np.float32)
    subject.run(trace(lambda x: jax.pure_callback(np.negative, jax.ShapeDtypeStruct((3,), jnp.float32), x), x), x)
    for _ in range(2):
        error = _raised(lambda: subject.run(trace(fn, x), x))
        assert isinstance(error, ExecutionError), f"ExecutionError is due, not {type(error).__name__}: {error}"
        assert "on purpose" in str(error), error
    _still_works(subject)


def too_few_arguments(subject: Subject) -> None:
    x = subject.backend.from_host(np.ones(3, np.float32))
    run = subject.backend.compile(trace(lambda x, y: x + y, np.ones(3, np.float32), np.ones(3, np.float32)))
    _raised(lambda: run(x))
    np.testing.assert_array_equal(subject.backend.to_host(run(x, x)[0]), np.full(3, 2, np.float32))


def an_unsupported_dtype(subject: Subject) -> None:
    """A refused dtype leaves the backend usable."""
    refused = set(dtypes.names()) - set(dtypes.supported(subject))
    if not refused:
        raise NotRun("the backend holds every dtype")
    _still_works(subject)
