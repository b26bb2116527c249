"""``debug=True``: run one equation at a time and stop at the first that makes a NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2ml.backend import Backend, Executable
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.errors import NotANumber
from m2ml.interpreter import Code, Equation, evaluate
from m2ml.program import Program


def has_nan(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "fcV" and bool(np.isnan(array.astype(complex if array.dtype.kind == "c" else float)).any())


def debug_executable(backend: Backend, program: Program) -> Executable:
    """An executable for ``program`` that raises `m2ml.NotANumber` naming the first equation that made a NaN."""

    def apply(equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, arrays, run, backend.to_host, stack)
        outs = backend.apply(equation, arrays)
        for out, aval in zip(outs, equation.outputs, strict=True):
            if np.dtype(aval.dtype).kind in "fcV" and has_nan(backend.to_host(out)):
                if not any(has_nan(backend.to_host(x)) for x in arrays):
                    raise NotANumber(f"the first NaN of {program.name} on {backend.name} was made by {equation.describe()}")
        return outs

    def run(code: Code, args: Sequence[Any]) -> list[Any]:
        return evaluate(code, apply, backend.from_host, args)

    def stack(rows: Sequence[Any], aval: Any) -> Any:
        host = np.stack([backend.to_host(r) for r in rows]) if rows else np.zeros(aval.shape, aval.dtype)
        return backend.from_host(host)

    return lambda *args: run(program.code, args)
