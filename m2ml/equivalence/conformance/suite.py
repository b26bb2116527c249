"""What a check is, how it is run, and which checks there are."""

from __future__ import annotations

import importlib
import unittest
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from m2ml import arrays
from m2ml.backend import Backend, Gap
from m2ml.equivalence.measure import canonical, judge_twice, measured_bounds, physical
from m2ml.errors import UnsupportedDtype, UnsupportedPrimitive
from m2ml.interpreter import Code
from m2ml.program import Program
from m2ml.staged import Staged

#: The modules of the suite, in the order in which they run; each has ``checks(subject) -> Iterable[Check]``.
PARTS = ("contract", "dtypes", "primitives", "programs", "gradients", "random_numbers", "ops", "errors", "resources")

#: How a backend refuses what it does not do.
REFUSALS = (UnsupportedPrimitive, UnsupportedDtype)


class DeclaredGap(Exception):
    """The check met what the backend declares that it does not do."""


class NotRun(Exception):
    """The check cannot say anything here; the reason says why."""


@dataclass(frozen=True)
class Check:
    """One check: ``run(subject)`` returns when the backend passes and raises when it does not."""

    part: str
    name: str
    run: Callable[[Subject], None]

    @property
    def id(self) -> str:
        return f"{self.part}/{self.name}"


@dataclass(frozen=True)
class Result:
    """What came of a check: ``outcome`` is ``"passed"``, ``"failed"``, ``"gap"`` or ``"not run"``."""

    part: str
    name: str
    outcome: str
    message: str = ""
    error: BaseException | None = None


@dataclass(frozen=True)
class Subject:
    """The backend under test. ``examples`` are drawn per primitive; a call that takes ``timeout`` seconds hangs."""

    backend: Backend
    examples: int = 20
    timeout: float = 60.0

    def gaps(self, code: Code) -> list[Gap]:
        """The declared gaps that ``code`` meets."""
        equations = list(code.equations())
        return [gap for gap in self.backend.gaps if any(map(gap.meets, equations))]

    def refused(self, code: Code, error: Exception) -> DeclaredGap:
        """``error``, a refusal of ``code``, as the gap that declares it; raises it where none does."""
        gaps = self.gaps(code)
        if not gaps:
            raise error
        return DeclaredGap("; ".join(dict.fromkeys(gap.reason for gap in gaps)))

    def run(self, program: Program, *host: Any) -> list[np.ndarray[Any, Any]]:
        """Outputs of ``program`` on NumPy arrays; raises `DeclaredGap` where the backend refuses what it declares."""
        try:
            outs = self.backend.compile(program)(*(self.backend.from_host(x) for x in host))
        except REFUSALS as error:
            raise self.refused(program.code, error) from error
        return [self.backend.to_host(y) for y in outs]

    def agree(self, fn: Callable[..., Any], *args: Any) -> None:
        """Assert that ``fn(*args)`` lies within the bound that the reference measures (see `m2ml.compare`)."""
        program = trace(fn, *args)
        host = [canonical(physical(arrays.to_host(x))) for x in jax.tree.leaves(args)]
        outs = self.run(program, *host)
        name = self.backend.name
        report, _ = judge_twice(program, {name: outs}, lambda runs: measured_bounds(program, host, runs=runs))
        if not report.ok:
            raise AssertionError(f"outside the bound around the reference: {report}")


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """``fn`` as a program that the backend must run by itself: ``strict`` forbids it to run equations elsewhere."""
    return Staged(fn, strict=True).trace(args, {})


def suite(subject: Subject) -> list[Check]:
    """Every check of the kit for this backend."""
    modules = [importlib.import_module(f"m2ml.equivalence.conformance.{part}") for part in PARTS]
    return [check for module in modules for check in module.checks(subject)]


def run_check(check: Check, subject: Subject) -> Result:
    """Run one check. Whatever a backend raises is a failure; nothing is lost."""
    try:
        check.run(subject)
    except DeclaredGap as gap:
        return Result(check.part, check.name, "gap", str(gap))
    except (NotRun, unittest.SkipTest) as reason:
        return Result(check.part, check.name, "not run", str(reason))
    except Exception as error:
        return Result(check.part, check.name, "failed", f"{type(error).__name__}: {error}", error)
    return Result(check.part, check.name, "passed")


def checks_of(part: str, functions: Iterable[Callable[[Subject], None]]) -> list[Check]:
    """A check per function, called by the function's name with spaces."""
    return [Check(part, function.__name__.replace("_", " "), function) for function in functions]


def one_sentence(error: BaseException) -> str:
    """The text of an error that keeps the contract: one line, not empty."""
    text = str(error)
    assert text.splitlines() == [text], f"an error is one sentence on one line; {type(error).__name__} says {text!r}"
    return text
