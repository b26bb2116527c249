"""`InterpreterBackend`: a backend made of one rule per primitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2ml.backend import Device, Executable, Gap, MemoryStats
from m2ml.interpreter import Code, Equation, Rule, apply_rule, evaluate
from m2ml.program import Program


class InterpreterBackend:
    """Runs a program one equation after the other with a table of rules.

    A subclass sets ``name`` and ``rules`` and implements `from_host`, `to_host`, `owns`, and, for control
    flow, `stack`. Rules take and give native arrays: ``rule(equation, *arrays)``. ``scan``, ``while`` and
    ``cond`` run as host loops over their bodies and need no rule.
    """

    name: str
    rules: Mapping[str, Rule]
    gaps: Sequence[Gap] = ()

    def devices(self) -> Sequence[Device]:
        return (Device("cpu", "host"),)

    def compile(self, program: Program) -> Executable:
        code = program.code
        return lambda *args: self.run(code, args)

    def run(self, code: Code, args: Sequence[Any]) -> list[Any]:
        """Evaluate flattened code on native arrays."""
        return evaluate(code, self.apply, self.from_host, args)

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        control = getattr(self, f"_{equation.name}", None) if equation.name in CONTROL_FLOW else None
        return control(equation, arrays) if control else apply_rule(self.rules, equation, arrays)

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        raise NotImplementedError

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def owns(self, array: Any) -> bool:
        raise NotImplementedError

    def stack(self, arrays: Sequence[Any], aval: Any) -> Any:
        """Stack ``arrays`` along a new leading axis; ``aval`` is the result's shape and dtype (its length may be 0)."""
        raise NotImplementedError

    def wait(self, arrays: Sequence[Any]) -> None:
        """Eager arrays are ready as soon as they exist."""

    def memory(self) -> MemoryStats:
        return MemoryStats()

    # Control flow: the bodies are Code, the loop is Python.

    def _cond(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        branches: tuple[Code, ...] = equation.params["branches"]
        index = int(self.to_host(arrays[0]))
        return self.run(branches[min(max(index, 0), len(branches) - 1)], arrays[1:])

    def _while(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        params = equation.params
        a, b = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts, carry = list(arrays[:a]), list(arrays[a : a + b]), list(arrays[a + b :])
        while bool(self.to_host(self.run(params["cond_jaxpr"], cond_consts + carry)[0])):
            carry = self.run(params["body_jaxpr"], body_consts + carry)
        return carry

    def _scan(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        params = equation.params
        length, carries = params["length"], params["num_carry"]
        begin = params["num_consts"] + carries
        consts, carry, xs = list(arrays[: params["num_consts"]]), list(arrays[params["num_consts"] : begin]), arrays[begin:]
        rows: list[list[Any]] = [[None] * length for _ in equation.outputs[carries:]]
        for i in reversed(range(length)) if params["reverse"] else range(length):
            out = self.run(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)])
            carry = out[:carries]
            for row, y in zip(rows, out[carries:], strict=True):
                row[i] = y
        return carry + [self.stack(row, aval) for row, aval in zip(rows, equation.outputs[carries:], strict=True)]


#: Primitives whose parameters hold bodies to run.
CONTROL_FLOW = frozenset({"cond", "scan", "while"})
