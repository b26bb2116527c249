"""``scan``, ``while`` and ``cond`` as host loops over their bodies, for any engine that can run `Code`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from m2ml.interpreter import Code, Equation

#: Runs a body on native arrays.
Run = Callable[[Code, Sequence[Any]], list[Any]]
#: Stacks arrays along a new leading axis; the second argument is the shape and dtype of the result.
Stack = Callable[[Sequence[Any], Any], Any]
ToHost = Callable[[Any], Any]

#: Primitives whose parameters hold bodies to run.
CONTROL_FLOW = frozenset({"cond", "scan", "while"})


def run_control_flow(equation: Equation, arrays: Sequence[Any], run: Run, to_host: ToHost, stack: Stack) -> list[Any]:
    """Run one control-flow equation."""
    if equation.name == "cond":
        return _cond(equation, arrays, run, to_host)
    if equation.name == "while":
        return _while(equation, arrays, run, to_host)
    return _scan(equation, arrays, run, stack)


def _cond(equation: Equation, arrays: Sequence[Any], run: Run, to_host: ToHost) -> list[Any]:
    branches: tuple[Code, ...] = equation.params["branches"]
    index = min(max(int(to_host(arrays[0])), 0), len(branches) - 1)
    return run(branches[index], arrays[1:])


def _while(equation: Equation, arrays: Sequence[Any], run: Run, to_host: ToHost) -> list[Any]:
    params = equation.params
    a, b = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts, carry = list(arrays[:a]), list(arrays[a : a + b]), list(arrays[a + b :])
    while bool(to_host(run(params["cond_jaxpr"], cond_consts + carry)[0])):
        carry = run(params["body_jaxpr"], body_consts + carry)
    return carry


def _scan(equation: Equation, arrays: Sequence[Any], run: Run, stack: Stack) -> list[Any]:
    params = equation.params
    length, carries, constants = params["length"], params["num_carry"], params["num_consts"]
    consts, carry, xs = arrays[:constants], list(arrays[constants : constants + carries]), arrays[constants + carries :]
    rows: list[list[Any]] = [[None] * length for _ in equation.outputs[carries:]]
    for i in reversed(range(length)) if params["reverse"] else range(length):
        out = run(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)])
        carry = out[:carries]
        for row, y in zip(rows, out[carries:], strict=True):
            row[i] = y
    return carry + [stack(row, aval) for row, aval in zip(rows, equation.outputs[carries:], strict=True)]
