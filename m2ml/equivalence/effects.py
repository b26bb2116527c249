"""What a program does beside computing: callbacks that `compare` refuses, silences or checks, and where NaN begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m2ml import compat
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.debug import debug_executable
from m2ml.errors import M2mlError, NotANumber
from m2ml.interpreter import Code, Equation, equation_bodies, evaluate
from m2ml.plugins import registry
from m2ml.precision import widen
from m2ml.program import Program

Array = np.ndarray[Any, Any]

#: Callbacks without results: they are run by the backends and left out of the reference's many runs.
SILENCED = frozenset({"debug_callback", "debug_print"})

CALLBACKS = SILENCED | {"io_callback", "pure_callback"}


def refuse_side_effects(program: Program) -> None:
    """Raise `m2ml.M2mlError` when the program does what cannot be done again: an ``io_callback``."""
    found = next((e for e in program.code.equations() if e.name == "io_callback"), None)
    if found is not None:
        raise M2mlError(
            f"compare runs {program.name} several times on each engine, and {found.describe()} has side effects; "
            "compare the part without it, or use jax.pure_callback if it has none"
        )


def silent(code: Code) -> Code:
    """``code`` without ``jax.debug`` callbacks; itself if it has none."""
    if not any(equation.name in SILENCED for equation in code.equations()):
        return code
    steps = [step for step in code.steps if step.equation.name not in SILENCED]
    return replace(code, steps=tuple(replace(step, equation=_silent_equation(step.equation)) for step in steps))


def _silent_equation(equation: Equation) -> Equation:
    if not any(True for _ in equation_bodies(equation)):
        return equation

    def of(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(of, value))
        return silent(value) if isinstance(value, Code) else value

    return replace(equation, params={key: of(value) for key, value in equation.params.items()})


def check_callbacks(program: Program, host: Sequence[Array]) -> None:
    """Raise `m2ml.M2mlError` when a ``pure_callback`` of the program gives another result the second time."""
    if not any(equation.name == "pure_callback" for equation in program.code.equations()):
        return

    def observe(equation: Equation, inputs: Sequence[Array], outs: Sequence[Array], again: Callable[[], Any]) -> None:
        if equation.name == "pure_callback":
            same = all(np.array_equal(x, y, equal_nan=x.dtype.kind in "fc") for x, y in zip(outs, again(), strict=True))
            if not same:
                raise M2mlError(
                    f"{equation.describe()} gives another result each time it is called with the same arguments, so "
                    f"{program.name} has no result to compare; make it deterministic (seed its generator)"
                )

    _observed(program, host, observe)


def _observed(program: Program, host: Sequence[Array], observe: Callable[..., None]) -> list[Any]:
    """Run the program on the reference and show each equation to ``observe(equation, inputs, outputs, again)``."""
    reference: Any = registry.get("reference")

    def apply(equation: Equation, inputs: Sequence[Any]) -> list[Any]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, inputs, run, reference.to_host, reference.stack)
        outs = reference.apply(equation, inputs)
        observe(equation, inputs, outs, lambda: reference.apply(equation, inputs))
        return list(outs)

    def run(code: Code, args: Sequence[Any]) -> list[Any]:
        return evaluate(code, apply, widen, args)

    return run(silent(program.code), [widen(x) for x in host])


def where_nan_begins(program: Program, host: Sequence[Array], inputs: Sequence[str]) -> str:
    """A sentence on the first NaN of the reference's run, or ``""`` when it makes none."""
    given = [
        name for name, x in zip(inputs, host, strict=True) if compat.is_inexact(x.dtype) and np.isnan(widen(x)).any()
    ]
    if given:
        return f"{', '.join(given[:4])} hold{'s' if len(given) == 1 else ''} NaN"
    try:
        debug_executable(registry.get("reference"), program)(*map(widen, host))
    except NotANumber as error:
        return str(error)
    return ""
