"""Reductions, cumulative reductions and searches for the extreme."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, greatest, least, rules

#: The NumPy function behind each monoid, by its name in primitives.
UFUNCS = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "logsumexp": np.logaddexp,
}


def identity_of(kind: str, dtype: np.dtype) -> Array:
    """The value that changes nothing under the monoid, in the dtype given."""
    values = {"sum": 0, "prod": 1, "or": 0, "xor": 0, "and": -1, "max": least(dtype), "min": greatest(dtype)}
    return np.asarray(values[kind]).astype(dtype)


def _define_reduction(kind: str) -> None:
    def rule(equation: Equation, x: Array) -> Array:
        axes, start = tuple(equation.params["axes"]), identity_of(kind, x.dtype)
        if x.dtype.kind == "V":
            x, start = x.astype(np.int64), start.astype(np.int64)
        return np.asarray(UFUNCS[kind].reduce(x, axis=axes, dtype=x.dtype, initial=start))

    rules.define(f"reduce_{kind}")(rule)


for _kind in ("sum", "prod", "max", "min", "and", "or", "xor"):
    _define_reduction(_kind)


def _define_cumulative(kind: str) -> None:
    def rule(equation: Equation, x: Array) -> Array:
        axis = equation.params["axis"]
        forward = np.flip(x, axis) if equation.params["reverse"] else x
        result = _accumulate(kind, forward, axis)
        return np.flip(result, axis) if equation.params["reverse"] else result

    rules.define(f"cum{kind}")(rule)


def _accumulate(kind: str, x: Array, axis: int) -> Array:
    if kind == "logsumexp" and np.iscomplexobj(x):
        peak = np.max(x.real, axis=axis, keepdims=True, initial=-np.inf)
        return np.asarray(np.log(np.cumsum(np.exp(x - peak), axis=axis)) + peak)
    return UFUNCS[kind].accumulate(x, axis=axis, dtype=x.dtype)


for _kind in ("sum", "prod", "max", "min", "logsumexp"):
    _define_cumulative(_kind)


def _define_search(name: str, search: Callable[..., Array]) -> None:
    """The first extreme; a NaN counts as one."""

    def rule(equation: Equation, x: Array) -> Array:
        (axis,) = equation.params["axes"]
        return search(x, axis=axis)

    rules.define(name)(rule)


_define_search("argmax", np.argmax)
_define_search("argmin", np.argmin)
