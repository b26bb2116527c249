"""The contract between m2ml and an engine: what a backend plugin provides.

A backend compiles a `Program` into an executable that takes and gives the engine's own arrays. Nothing here
imports an engine; a plugin is registered through the hooks in `m2ml.plugins`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from m2ml.interpreter import Equation
    from m2ml.program import Program

#: Native arrays in, native arrays out, in the order of the program's leaves. Typed random keys travel as the
#: uint32 arrays that hold them.
Executable = Callable[..., Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a backend. ``memory`` is its usable memory in bytes, or None when it is not known."""

    kind: str
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes held now and at the worst moment since the backend started, or None when not known."""

    active: int | None = None
    peak: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Something a backend declares that it does not do: a strict expected failure and a line in the support table.

    ``primitive`` is a primitive's name or ``"*"``; ``dtype`` a NumPy dtype name or ``"*"``; ``case`` a pattern
    (`fnmatch`) of the names of test cases, for what is wrong with some parameters or values only.
    """

    primitive: str
    dtype: str
    reason: str
    case: str = "*"

    def covers(self, case: str, equations: Iterable[Equation]) -> bool:
        """Whether the gap speaks of a test case of this name and these equations."""
        return fnmatchcase(case, self.case) and any(map(self.meets, equations))

    def meets(self, equation: Equation) -> bool:
        """Whether the gap speaks of this equation in some test case."""
        dtypes = {np.dtype(aval.dtype).name for aval in (*equation.inputs, *equation.outputs)}
        return self.primitive in ("*", equation.name) and (self.dtype == "*" or self.dtype in dtypes)


@runtime_checkable
class Backend(Protocol):
    """An engine. Subclass `m2ml.InterpreterBackend` or `m2ml.XlaBackend` to get most of it for free.

    Optional: ``array_type``, the type of its arrays where they have ``shape`` and a hashable ``dtype``, makes calls
    cheaper; ``dtype_of(array)`` gives an array's NumPy dtype without a copy; ``explain(program)`` gives sentences for
    `m2ml.Jitted.explain`; ``jit(jitted)`` takes over the dispatch of a ``jax.jit`` function.
    """

    name: str
    gaps: Sequence[Gap]

    def devices(self) -> Sequence[Device]:
        """The devices the backend would use, best first. Raises `m2ml.BackendUnavailable` when there is none."""

    def compile(self, program: Program) -> Executable:
        """Compile ``program``: the result takes its leaves as native arrays and gives its output leaves."""

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        """Run one equation on native arrays: how `debug=True` and bisection step through a program."""

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        """A native array with the values of ``array`` (bfloat16 and its kin are ml_dtypes)."""

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        """The values of a native array; waits for it."""

    def owns(self, array: Any) -> bool:
        """Whether ``array`` is one of this backend's arrays. Must not start the engine."""

    def wait(self, arrays: Sequence[Any]) -> None:
        """Return when ``arrays`` have been computed."""

    def memory(self) -> MemoryStats:
        """What the engine holds."""
