"""``debug=True``: run one equation at a time and stop at the first that makes a NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2ml import compat
from m2ml.backend import Backend, Executable
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.errors import NotANumber
from m2ml.interpreter import Code, Equation, evaluate
from m2ml.program import Program


def _holds_nan(backend: Backend, array: Any, aval: Any) -> bool:
    """Whether a native array of a floating or complex dtype holds a NaN."""
    dtype = np.dtype(aval.dtype)
    if not compat.is_inexact(dtype):
        return False
    return bool(np.isnan(backend.to_host(array).astype(complex if dtype.kind == "c" else float)).any())


def debug_executable(backend: Backend, program: Program) -> Executable:
    """An executable for ``program`` that raises `m2ml.NotANumber` naming the first equation that made a NaN."""

    def apply(equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, arrays, run, backend.to_host, stack)
        outs = backend.apply(equation, arrays)
        made = any(_holds_nan(backend, y, aval) for y, aval in zip(outs, equation.outputs, strict=True))
        if made and not any(_holds_nan(backend, x, aval) for x, aval in zip(arrays, equation.inputs, strict=True)):
            raise NotANumber(f"the first NaN of {program.name} on {backend.name} was made by {equation.describe()}")
        return outs

    def run(code: Code, args: Sequence[Any]) -> list[Any]:
        return evaluate(code, apply, backend.from_host, args)

    def stack(rows: Sequence[Any], aval: Any) -> Any:
        host = np.stack([backend.to_host(r) for r in rows]) if rows else np.zeros(aval.shape, aval.dtype)
        return backend.from_host(host)

    return lambda *args: run(program.code, args)
