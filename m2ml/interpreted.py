"""`InterpreterBackend`: a backend made of one rule per primitive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2ml.backend import Device, Executable, Gap, MemoryStats
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.interpreter import Code, Equation, Rule, apply_rule, evaluate
from m2ml.kernel import keeper
from m2ml.program import Program


class InterpreterBackend(ABC):
    """Runs a program one equation after the other with a table of rules.

    A subclass sets ``name`` and ``rules`` and implements `from_host`, `to_host`, `owns`, and, for control
    flow, `stack`. Rules take and give native arrays: ``rule(equation, *arrays)``. ``scan``, ``while`` and
    ``cond`` run as host loops over their bodies and need no rule.

    ``rules`` given to the constructor takes the place of the class's own table: a copy with one rule changed shows
    whether the tests notice.
    """

    name: str
    rules: Mapping[str, Rule]
    gaps: Sequence[Gap] = ()

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        if rules is not None:
            self.rules = rules

    def devices(self) -> Sequence[Device]:
        return (Device("cpu", "host"),)

    def compile(self, program: Program) -> Executable:
        code = program.code_with_ops(keeper(self.name, self.devices()[0].kind))
        return lambda *args: self.run(code, args)

    def run(self, code: Code, args: Sequence[Any]) -> list[Any]:
        """Evaluate flattened code on native arrays."""
        return evaluate(code, self.apply, self.from_host, args)

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, arrays, self.run, self.to_host, self.stack)
        return apply_rule(self.rules, equation, arrays)

    @abstractmethod
    def from_host(self, array: np.ndarray[Any, Any]) -> Any: ...

    @abstractmethod
    def to_host(self, array: Any) -> np.ndarray[Any, Any]: ...

    @abstractmethod
    def owns(self, array: Any) -> bool: ...

    @abstractmethod
    def stack(self, arrays: Sequence[Any], aval: Any) -> Any:
        """Stack ``arrays`` along a new leading axis; ``aval`` is the result's shape and dtype (its length may be 0)."""

    def wait(self, arrays: Sequence[Any]) -> None:  # noqa: B027 - a default, not a duty
        """Eager arrays are ready as soon as they exist."""

    def memory(self) -> MemoryStats:
        return MemoryStats()
