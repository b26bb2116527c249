"""Every primitive that has a generator of cases: each equation within its bound, gaps strict both ways."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from m2ml.backend import Backend, Executable
from m2ml.equivalence.conformance.suite import REFUSALS, Check, DeclaredGap, NotRun, Subject, trace
from m2ml.errors import M2mlError
from m2ml.interpreter import Equation


def checks(subject: Subject) -> Iterable[Check]:
    try:
        from m2ml.equivalence.primitives import load
    except ModuleNotFoundError as error:
        raise M2mlError(f'the conformance kit needs {error.name}; install it with: pip install "m2ml[kit]"') from error
    generated = load()
    yield from (Check("primitives", name, _on_examples(name)) for name in sorted(generated))
    declared = {gap.primitive for gap in subject.backend.gaps} - {"*"} - set(generated)
    yield from (Check("primitives", name, _not_exercised) for name in sorted(declared))


def _not_exercised(subject: Subject) -> None:
    raise NotRun("a declared gap that no generated case meets")


def _on_examples(name: str) -> Callable[[Subject], None]:
    return lambda subject: _Examples(subject, name).run()


class _Examples:
    """Runs the examples of one primitive and keeps what became of its declared gaps."""

    def __init__(self, subject: Subject, name: str) -> None:
        self.subject, self.name = subject, name
        self.engine: Any = _Compiling(subject.backend)
        self.met = False
        self.refusals: list[DeclaredGap] = []
        self.met_gap = False

    def run(self) -> None:
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import strategies as st

        @settings(
            max_examples=self.subject.examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def examples(data: st.DataObject) -> None:
            self.example(data)

        examples()
        if not self.met:
            raise NotRun("no example binds it in this version of JAX")
        if self.refusals:
            raise self.refusals[0]
        assert not self.met_gap, f"{self.name} is declared as a gap, but every example agrees: remove the gap"

    def example(self, data: object) -> None:
        """One example: each of its equations agrees, or is a declared gap that is refused."""
        from m2ml.equivalence.primitives import CASES, check

        function, arrays = CASES[self.name](data.draw, self.name)  # type: ignore[attr-defined]
        program = trace(function, *arrays)
        if self.name not in program.primitives:  # this version of JAX expands it
            return
        self.met = True
        # A gap of some cases only is held to those: JAX's own.
        gaps = [gap for gap in self.subject.gaps(program.code) if gap.case == "*"]
        self.met_gap |= any(gap.primitive == self.name for gap in gaps)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what debug.print prints is not the kit's
                check(program.code, arrays, [self.engine])
        except REFUSALS as error:
            self.refusals.append(self.subject.refused(program.code, error))


class _Compiling:
    """A backend of which each equation is compiled as a program of its own that it must run by itself."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name = backend, backend.name
        self.from_host, self.to_host = backend.from_host, backend.to_host
        self.executable = functools.lru_cache(maxsize=256)(self._executable)

    def _executable(self, equation: Equation) -> Executable:
        return self.backend.compile(trace(equation.bind, *equation.inputs))

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        return list(self.executable(equation)(*arrays))
