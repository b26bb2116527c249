"""Cut a program down to what still disagrees: one equation alone if that is enough, or what one output needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m2ml.equivalence.bisect import op_program, retraced
from m2ml.equivalence.report import Divergence
from m2ml.equivalence.reproduce import with_ops
from m2ml.interpreter import Code, Equation, Step, evaluate
from m2ml.plugins import registry
from m2ml.precision import narrow, widen
from m2ml.program import Program

Array = np.ndarray[Any, Any]

#: Whether a program on these inputs still shows the fault.
Shows = Callable[[Program, Sequence[Array]], bool]


def smaller(
    program: Program, host: Sequence[Array], shows: Shows, divergence: Divergence | None
) -> tuple[Program, tuple[Array, ...]]:
    """The smallest part of ``program`` that still shows the fault, with its inputs; ``program`` itself at worst."""
    if divergence is not None:
        for equation, inputs in single_equations(with_ops(program), host):
            if equation.name == divergence.primitive:
                part = alone(program, equation)
                if shows(part, inputs):
                    return part, tuple(inputs)
    for slot in dict.fromkeys(with_ops(program).outputs):
        part, read = needed(program, host, slot)
        if shows(part, read):
            return part, read
    return program, tuple(host)


def single_equations(code: Code, host: Sequence[Array]) -> Iterator[tuple[Equation, list[Array]]]:
    """Every equation of ``code``, bodies included, with the inputs that the reference gives it."""
    reference: Any = registry.get("reference")
    met: list[tuple[Equation, list[Array]]] = []

    def apply(equation: Equation, inputs: Sequence[Any]) -> list[Array]:
        typed = [np.asarray(x, aval.dtype) for x, aval in zip(inputs, equation.inputs, strict=True)]
        met.append((equation, typed))
        if equation.kernel is not None:
            outs = reference.run_code(op_program(equation).code, typed)
            return [narrow(y, aval.dtype) for y, aval in zip(outs, equation.outputs, strict=True)]
        outs = reference.apply(equation, [widen(x) for x in typed])
        return [narrow(y, aval.dtype) for y, aval in zip(outs, equation.outputs, strict=True)]

    evaluate(code, apply, np.asarray, list(host))
    yield from met


def alone(program: Program, equation: Equation) -> Program:
    """``equation`` as a program."""
    count = len(equation.inputs)
    made = tuple(range(count, count + len(equation.outputs)))
    step = Step(equation, tuple(range(count)), made)
    code = Code(tuple(range(count)), made, {}, (step,), (*equation.inputs, *equation.outputs))
    return retraced(replace(program, donated=(False,) * count), code)


def needed(program: Program, host: Sequence[Array], output: int) -> tuple[Program, tuple[Array, ...]]:
    """What slot ``output`` needs, as a program, with the inputs that it reads."""
    code, live, steps = with_ops(program), {output}, []
    for step in reversed(code.steps):
        if live & set(step.outputs):
            live |= set(step.inputs)
            steps.append(replace(step, last=()))
    kept = [(slot, x) for slot, x in zip(code.inputs, host, strict=True) if slot in live]
    constants = {slot: value for slot, value in code.constants.items() if slot in live}
    inputs = tuple(slot for slot, _ in kept)
    part = replace(code, inputs=inputs, outputs=(output,), constants=constants, steps=tuple(reversed(steps)))
    return retraced(replace(program, donated=(False,) * len(inputs)), part), tuple(x for _, x in kept)
