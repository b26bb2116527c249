"""Sorting and selection: ``sort``, ``top_k``, ``approx_top_k``.

MLX sorts one array along one axis, stably and with NaN last. Several keys are sorted from the last to the
first, each pass refining one permutation.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import (
    FLOATS,
    SIGNED,
    constant,
    is_bool,
    is_complex,
    is_unsigned,
    numpy_dtype,
    out_dtype,
    rules,
)


def total_order(x: mx.array) -> mx.array:
    """Floats as signed integers that compare as IEEE's total order does: -NaN, -inf .. -0, +0 .. inf, NaN.

    Its own inverse on the bits of the result; see `from_total_order`.
    """
    return _flip_negative(x.view(SIGNED[x.dtype.size]))


def from_total_order(keys: mx.array, dtype: mx.Dtype) -> mx.array:
    """The floats that `total_order` made ``keys`` from."""
    return _flip_negative(keys).view(dtype)


def _flip_negative(x: mx.array) -> mx.array:
    greatest = constant(np.iinfo(numpy_dtype(x.dtype)).max, x.dtype)
    return mx.where(x < constant(0, x.dtype), mx.bitwise_xor(x, greatest), x)


def _keys(x: mx.array) -> list[mx.array]:
    """Arrays that MLX sorts as XLA sorts ``x``: complex numbers by their real, then their imaginary part."""
    if is_complex(x):
        return [x.real, x.imag]
    return [x.view(mx.uint8) if is_bool(x) else x]


def permutation(keys: Sequence[mx.array], axis: int) -> mx.array:
    """The order along ``axis`` that sorts by the first key, then by the next."""
    order = mx.argsort(keys[-1], axis)
    for key in reversed(keys[:-1]):
        refined = mx.argsort(mx.take_along_axis(key, order, axis), axis)
        order = mx.take_along_axis(order, refined, axis)
    return order


@rules.define("sort")
def sort(equation: Equation, *operands: mx.array) -> list[mx.array]:
    axis = equation.params["dimension"]
    if not equation.shape or 0 in equation.shape:
        return list(operands)
    if len(operands) == 1 and not is_complex(operands[0]):
        x = operands[0]
        return [mx.sort(x.view(mx.uint8), axis).view(mx.bool_) if is_bool(x) else mx.sort(x, axis)]
    keys = [key for x in operands[: equation.params["num_keys"]] for key in _keys(x)]
    order = permutation(keys, axis)
    return [mx.take_along_axis(x, order, axis) for x in operands]


def _descending(x: mx.array) -> mx.array:
    """Integers that increase as ``x`` decreases in total order: an ascending stable sort keeps ties in order."""
    if is_bool(x):
        x = x.view(mx.uint8)
    key = total_order(x) if x.dtype in FLOATS else x
    greatest = np.iinfo(numpy_dtype(key.dtype)).max
    return mx.subtract(constant(greatest if is_unsigned(key) else -1, key.dtype), key)


def _first(x: mx.array, count: int, axis: int) -> mx.array:
    return x if x.shape[axis] == count else mx.split(x, [count], axis)[0]


def _select(equation: Equation, x: mx.array, key: mx.array, axis: int) -> list[mx.array]:
    """The entries of ``x`` at the least ``k`` keys along ``axis``, and their positions."""
    count, dtype = equation.params["k"], out_dtype(equation, 1)
    if 0 in equation.shape:
        return [mx.zeros(equation.shape, x.dtype), mx.zeros(equation.shape, dtype)]
    order = mx.argmin(key, axis, keepdims=True) if count == 1 else _first(mx.argsort(key, axis), count, axis)
    return [mx.take_along_axis(x, order, axis), order.astype(dtype)]


@rules.define("top_k")
def top_k(equation: Equation, x: mx.array) -> list[mx.array]:
    return _select(equation, x, _descending(x), equation.params.get("axis", x.ndim - 1))


@rules.define("approx_top_k")
def approx_top_k(equation: Equation, x: mx.array) -> list[mx.array]:
    """Exact, which every recall target allows."""
    axis = equation.params["reduction_dimension"] % x.ndim
    return _select(equation, x, _descending(x) if equation.params["is_max_k"] else total_order(x), axis)
