"""Rules that run a function of the program: those of generic reductions and scatters.

Each takes ``run(code, arrays)`` before its equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from m2ml.interpreter import Code, Equation, Rules
from m2ml_reference.indexing import scatter_apply, scatter_replace
from m2ml_reference.values import Array, rules, wide
from m2ml_reference.windows import padded, select_by, slices

Run = Callable[[Code, Sequence[Array]], list[Array]]

BODY_RULES: Rules = Rules()

_ELEMENTWISE_FAMILIES = ("m2ml_reference.elementwise", "m2ml_reference.integers", "m2ml_reference.special")


def _elementwise(code: Code) -> bool:
    """Whether every equation treats each element alike, so that code on scalars may be run on arrays."""
    found = (rules.get(step.equation.name) for step in code.steps)
    return all(rule is not None and rule.__module__ in _ELEMENTWISE_FAMILIES for rule in found)


def mapped(run: Run, code: Code) -> Callable[..., list[Array]]:
    """Code on scalars as a function on arrays, element by element."""

    def function(*arrays: Array) -> list[Array]:
        arrays = tuple(np.broadcast_arrays(*arrays))
        shape = arrays[0].shape
        if _elementwise(code):
            return [np.broadcast_to(out, shape) for out in run(code, arrays)]
        outs = [np.empty(shape, wide(aval.dtype)) for aval in code.out_avals]
        for index in np.ndindex(*shape):
            for out, value in zip(outs, run(code, [x[index] for x in arrays]), strict=True):
                out[index] = value
        return outs

    return function


@BODY_RULES.define("reduce")
def reduce(run: Run, equation: Equation, *arrays: Array) -> list[Array]:
    """Fold the elements along ``dimensions`` in row-major order, beginning with the initial values."""
    count = len(arrays) // 2
    axes = tuple(equation.params["dimensions"])
    length = math.prod(arrays[0].shape[axis] for axis in axes)
    rows = [np.moveaxis(x, axes, range(len(axes))).reshape(length, *equation.shape) for x in arrays[:count]]
    carry: list[Array] = [np.broadcast_to(init, equation.shape) for init in arrays[count:]]
    function = mapped(run, equation.params["jaxpr"])
    for values in zip(*rows, strict=True):
        carry = function(*carry, *values)
    return carry


@BODY_RULES.define("reduce_window")
def reduce_window(run: Run, equation: Equation, *arrays: Array) -> list[Array]:
    """Fold each window in row-major order; padding holds the initial values."""
    params, count = equation.params, len(arrays) // 2
    operands, inits = arrays[:count], arrays[count:]
    carry: list[Array] = [np.broadcast_to(init, equation.shape) for init in inits]
    function = mapped(run, params["jaxpr"])
    parts = [slices(padded(x, init, params), params, equation.shape) for x, init in zip(operands, inits, strict=True)]
    for values in zip(*parts, strict=True):
        carry = function(*carry, *values)
    return carry


@BODY_RULES.define("select_and_scatter")
def select_and_scatter(run: Run, equation: Equation, operand: Array, source: Array, init: Array) -> Array:
    """Each window's source is scattered where the window's selected element stands."""
    params = equation.params
    select, scatter = mapped(run, params["select_jaxpr"]), mapped(run, params["scatter_jaxpr"])
    indices = padded(np.arange(operand.size).reshape(operand.shape), np.asarray(-1), params)
    selected, found = select_by(lambda a, b: select(a, b)[0], operand, indices, params, source.shape)
    result = np.full(operand.size, init)
    for target, value in zip(selected[found], source[found], strict=True):
        result[target] = scatter(result[target], value)[0]
    return result.reshape(operand.shape)


def _second_input(code: Code | None) -> bool:
    return code is None or code.outputs == code.inputs[1:2]


@BODY_RULES.define("scatter")
def scatter(run: Run, equation: Equation, operand: Array, indices: Array, updates: Array) -> Array:
    body = equation.params["update_jaxpr"]
    if _second_input(body):
        return scatter_replace(equation, operand, indices, updates)
    function = mapped(run, body)
    return scatter_apply(equation, lambda old, new: function(old, new)[0], operand, indices, updates)
