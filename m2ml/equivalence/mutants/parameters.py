"""Faults in the parameters of an equation: each one ignored, that is, replaced by another legal value."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax import lax

from m2ml.equivalence.mutants.fault import Array, Change, Fault, Run, attempted
from m2ml.interpreter import Code, Equation

#: How many other values of a parameter are tried; each is a fault of its own.
VALUES = 2

#: An engine may do anything with an index out of range once the program has promised that there is none.
_PROMISE = lax.GatherScatterMode.PROMISE_IN_BOUNDS


def parameter_changes(equations: Sequence[Equation]) -> Iterator[Fault]:
    """The faults of every parameter that holds a value for which another one is known."""
    names = {
        key for e in equations for key, value in e.params.items() if any(True for _ in other_values(value, least(key)))
    }
    for name in sorted(names):
        for number in range(VALUES):
            kind = "gather or scatter mode" if name == "mode" else "ignored parameter"
            yield Fault(kind, f"{name} changed, way {number}", _changed(name, number))


def _changed(name: str, number: int) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        right = run(equation, inputs)
        found = 0
        for value in other_values(equation.params.get(name), least(name)):
            outs = attempted(run, _with(equation, name, value), inputs)
            if outs is not None:
                if found == number:
                    return outs
                found += 1
        return list(right)

    return change


def _with(equation: Equation, name: str, value: Any) -> Equation:
    params: Mapping[str, Any] = {**equation.params, name: value}
    return replace(equation, params=params, bind_params={**equation.bind_params, name: value})


def least(name: str) -> int:
    """The least legal number in a parameter: an engine may divide by a stride or by a count of groups."""
    return 1 if any(word in name for word in ("count", "dilation", "stride", "window")) else 0


def other_values(value: Any, least: int) -> Iterator[Any]:
    """Values like ``value`` that are not it, the likeliest mistakes first; none for what has no known others."""
    if isinstance(value, bool | np.bool_):
        yield not value
    elif isinstance(value, enum.Enum):
        yield from (v for v in type(value) if v not in (value, _PROMISE))
    elif isinstance(value, int | np.integer):
        yield from (type(value)(v) for v in (value + 1, value - 1, 0) if v >= least and v != value)
    elif isinstance(value, float):
        yield from (v for v in (0.0, 1.0, 2 * value) if v != value)
    elif isinstance(value, tuple) and not any(isinstance(v, Code) for v in value):
        yield from _other_tuples(value, least)


def _other_tuples(value: tuple[Any, ...], least: int) -> Iterator[Any]:
    make: Callable[[list[Any]], Any] = type(value)._make if hasattr(value, "_make") else tuple
    if len(value) > 1 and value[::-1] != value and all(isinstance(v, int) for v in value):
        yield make(list(value[::-1]))
    for i, item in enumerate(value):
        for other in other_values(item, least):
            yield make([*value[:i], other, *value[i + 1 :]])
