"""Calls of the user's own Python functions; they see arrays of the declared dtypes."""

from __future__ import annotations

import string
from typing import Any

import jax
import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, narrow, rules, widen


def _declared(equation: Equation, arrays: tuple[Array, ...]) -> list[Array]:
    return [narrow(x, aval.dtype) for x, aval in zip(arrays, equation.inputs, strict=True)]


@rules.define("pure_callback", "io_callback")
def callback(equation: Equation, *arrays: Array) -> list[Array]:
    outs = jax.tree.leaves(equation.params["callback"](*_declared(equation, arrays)))
    return [widen(np.asarray(out, aval.dtype)) for out, aval in zip(outs, equation.outputs, strict=True)]


@rules.define("debug_callback")
def debug_callback(equation: Equation, *arrays: Array) -> list[Array]:
    equation.params["callback"](*_declared(equation, arrays))
    return []


@rules.define("debug_print")
def debug_print(equation: Equation, *arrays: Array) -> list[Array]:
    params = equation.params
    leaves: list[Any] = _declared(equation, arrays)
    for position, value in params["static_args"]:
        leaves.insert(position, value)
    args, kwargs = jax.tree.unflatten(params["in_tree"], leaves)
    if params["has_placeholders"]:
        print(string.Formatter().vformat(params["fmt"], args, kwargs))
    else:
        print(params["fmt"], *args, *(f"{key}={value}" for key, value in kwargs.items()))
    return []
