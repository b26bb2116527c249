"""The reference backend: NumPy in float64, one rule per primitive."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from m2ml.backend import Device, Executable
from m2ml.control import CONTROL_FLOW
from m2ml.interpreted import InterpreterBackend
from m2ml.interpreter import Code, Equation, Rule, evaluate
from m2ml.program import Program
from m2ml_reference.bodies import BODY_RULES
from m2ml_reference.gaps import GAPS
from m2ml_reference.values import Array, narrow, wide, widen
from m2ml_reference.values import rules as own_rules

FAMILIES = (
    "elementwise",
    "integers",
    "special",
    "structure",
    "reductions",
    "windows",
    "dot",
    "indexing",
    "sorting",
    "linalg",
    "fft",
    "random",
    "gamma",
    "callbacks",
)

for _family in FAMILIES:
    importlib.import_module(f"m2ml_reference.{_family}")

#: ``perturb(equation, inputs, outputs)`` gives the outputs to go on with.
Perturb = Callable[[Equation, Sequence[Array], list[Array]], Sequence[Array]]


class ReferenceBackend(InterpreterBackend):
    """Runs a program in float64, without rounding between equations.

    A value that would overflow its declared dtype stays exact inside a run and becomes infinite where it leaves
    the program; `is_finite` therefore speaks of the exact value.
    """

    name = "reference"
    gaps = GAPS

    def __init__(self, perturb: Perturb | None = None, *, rules: Mapping[str, Rule] | None = None) -> None:
        bodies = {name: partial(rule, self.run) for name, rule in BODY_RULES.items()}
        super().__init__({**own_rules, **bodies} if rules is None else rules)
        self.perturb = perturb

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu", "NumPy float64"),)

    def compile(self, program: Program) -> Executable:
        """Arrays of the declared dtypes in and out; the run between them is wide."""
        code = program.code

        def execute(*args: Any) -> list[Array]:
            outs = self.run_code(code, args)
            with np.errstate(all="ignore"):
                return [narrow(out, aval.dtype) for out, aval in zip(outs, code.out_avals, strict=True)]

        return execute

    def run_exact(self, program: Program, args: Sequence[Any]) -> list[Array]:
        """The results in float64 (complex128, own integers), never rounded."""
        return self.run_code(program.code, args)

    def run_perturbed(self, program: Program, args: Sequence[Any], perturb: Perturb | None) -> list[Array]:
        """The results in float64 when ``perturb`` may change what each equation, bodies included, gives."""
        return type(self)(perturb).run_code(program.code, args)

    @np.errstate(all="ignore")
    def run_code(self, code: Code, args: Sequence[Any]) -> list[Array]:
        typed = [np.asarray(arg, dtype=aval.dtype) for arg, aval in zip(args, code.in_avals, strict=True)]
        return self.run(code, [widen(array) for array in typed])

    def run(self, code: Code, args: Sequence[Any]) -> list[Any]:
        return evaluate(code, self.apply, widen, [np.asarray(arg) for arg in args])

    @np.errstate(all="ignore")
    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        results = super().apply(equation, arrays)
        outs = [
            np.asarray(result).astype(wide(aval.dtype), copy=False)
            for result, aval in zip(results, equation.outputs, strict=True)
        ]
        if self.perturb is None or equation.name in CONTROL_FLOW:
            return outs
        return list(self.perturb(equation, arrays, outs))

    def from_host(self, array: Array) -> Array:
        return array

    def to_host(self, array: Array) -> Array:
        return np.asarray(array)

    def owns(self, array: Any) -> bool:
        return isinstance(array, np.ndarray)

    def stack(self, arrays: Sequence[Any], aval: Any) -> Array:
        return np.stack(arrays) if arrays else np.zeros(aval.shape, wide(aval.dtype))
