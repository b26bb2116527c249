"""Sorting and selection of the largest.

`sort` puts NaN, whatever its sign, after infinity and takes both zeros for equal; `top_k` goes by the total
order of the bits, in which -NaN is smallest and -0 smaller than 0.
"""

from __future__ import annotations

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.elementwise import total_order
from m2ml_reference.values import Array, rules


def _keys(x: Array) -> list[Array]:
    """Arrays to sort by, the most significant first."""
    return [x.real, x.imag] if np.iscomplexobj(x) else [x]


@rules.define("sort")
def sort(equation: Equation, *operands: Array) -> list[Array]:
    """Operands sorted together, stably, by the first ``num_keys`` of them."""
    axis = equation.params["dimension"]
    keys = [key for x in operands[: equation.params["num_keys"]] for key in _keys(x)]
    order = np.lexsort(keys[::-1], axis=axis)
    return [np.take_along_axis(x, order, axis) for x in operands]


def largest(x: Array, k: int, axis: int) -> list[Array]:
    """The ``k`` largest in falling order and where they stand; of equals the first comes first."""
    backwards = np.flip(total_order(x, x.dtype), axis)
    order = x.shape[axis] - 1 - np.flip(np.argsort(backwards, axis=axis, kind="stable"), axis)
    chosen = np.take(order, np.arange(k), axis=axis)
    return [np.take_along_axis(x, chosen, axis), chosen]


@rules.define("top_k")
def top_k(equation: Equation, x: Array) -> list[Array]:
    return largest(x, equation.params["k"], equation.params.get("axis", x.ndim - 1))


@rules.define("approx_top_k")
def approx_top_k(equation: Equation, x: Array) -> list[Array]:
    """Exact: a recall of one satisfies any target."""
    axis = equation.params["reduction_dimension"]
    count = equation.shape[axis]
    if equation.params["is_max_k"]:
        return largest(x, count, axis)
    order = np.argsort(x, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(count), axis=axis)
    return [np.take_along_axis(x, chosen, axis), chosen]
