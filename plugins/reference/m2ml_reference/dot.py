"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules, wide

#: ((contracted axes of x, of y), (batch axes of x, of y))
DimensionNumbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def operands_for(equation: Equation, *operands: Array) -> list[Array]:
    """Operands in the dtype that the products accumulate in: that of the result, where integers wrap around."""
    return [x.astype(wide(equation.dtype), copy=False) for x in operands]


def _rest(ndim: int, *used: Sequence[int]) -> list[int]:
    taken = {axis for axes in used for axis in axes}
    return [axis for axis in range(ndim) if axis not in taken]


def contract(operands: Sequence[Array], dimension_numbers: DimensionNumbers) -> Array:
    """Sum of products over the contracted axes; the result is [*batch, *free of x, *free of y]."""
    x, y = operands
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    x_free, y_free = _rest(x.ndim, x_sum, x_batch), _rest(y.ndim, y_sum, y_batch)
    batch = [x.shape[i] for i in x_batch]
    rows, columns = [x.shape[i] for i in x_free], [y.shape[i] for i in y_free]
    inner = math.prod(x.shape[i] for i in x_sum)
    left = x.transpose((*x_batch, *x_free, *x_sum)).reshape((*batch, math.prod(rows), inner))
    right = y.transpose((*y_batch, *y_sum, *y_free)).reshape((*batch, inner, math.prod(columns)))
    return (left @ right).reshape((*batch, *rows, *columns))


@rules.define("dot_general")
def dot_general(equation: Equation, x: Array, y: Array) -> Array:
    return contract(operands_for(equation, x, y), equation.params["dimension_numbers"])


@rules.define("scaled_dot")
def scaled_dot(equation: Equation, x: Array, y: Array, x_scale: Array, y_scale: Array) -> Array:
    """A dot_general of operands whose contracted axes are scaled block by block."""
    dims = equation.params["dimension_numbers"]
    scaled = [_scaled(a, scale, axes) for a, scale, axes in zip((x, y), (x_scale, y_scale), dims[0], strict=True)]
    return contract(operands_for(equation, *scaled), dims)


def _scaled(x: Array, scale: Array, axes: Sequence[int]) -> Array:
    for axis in axes:
        scale = np.repeat(scale, x.shape[axis] // scale.shape[axis], axis)
    return x * scale


def _group_masks(sizes: Array, length: int) -> Array:
    """[group, *lead, position]: which positions of the ragged axis belong to each group."""
    ends = np.cumsum(sizes, axis=-1)
    starts = ends - sizes
    positions = np.arange(length)
    inside = (positions >= starts[..., None]) & (positions < ends[..., None])
    return np.moveaxis(inside, -2, 0)


@rules.define("ragged_dot")
def ragged_dot(equation: Equation, x: Array, y: Array, sizes: Array) -> Array:
    """Rows of ``x`` [m, k] in consecutive groups, each with its own matrix of ``y`` [g, k, n]; rows past them: 0."""
    x, y = operands_for(equation, x, y)
    masks = _group_masks(sizes, x.shape[0])
    return sum(
        (np.where(m[:, None], x, 0) @ w for m, w in zip(masks, y, strict=True)), np.zeros(equation.shape, x.dtype)
    )


@rules.define("ragged_dot_general")
def ragged_dot_general(equation: Equation, x: Array, y: Array, sizes: Array) -> Array:
    """A dot_general in which the groups of the ragged axis of ``x`` are kept apart.

    A free ragged axis: each group meets its own slice of ``y``. A contracted one: the result has a group axis in
    front. A batch axis: the groups only say which part of the batch exists.
    """
    numbers = equation.params["ragged_dot_dimension_numbers"]
    dims = numbers.dot_dimension_numbers
    (x_sum, _), (x_batch, _) = dims
    (ragged,) = numbers.lhs_ragged_dimensions
    x, y = operands_for(equation, x, y)
    groups = [np.where(_along(m, x, ragged, x_batch, x_sum), x, 0) for m in _group_masks(sizes, x.shape[ragged])]
    if ragged in x_sum:
        products = [contract((part, y), dims) for part in groups]
        return np.stack(products) if products else np.zeros(equation.shape, x.dtype)
    if ragged in x_batch:
        return contract((sum(groups, np.zeros_like(x)), y), dims)
    (group_axis,) = numbers.rhs_group_dimensions
    matrices = np.moveaxis(y, group_axis, 0)
    inner = _without(dims, group_axis)
    terms = (contract((part, matrix), inner) for part, matrix in zip(groups, matrices, strict=True))
    return sum(terms, np.zeros(equation.shape, x.dtype))


def _without(dims: DimensionNumbers, axis: int) -> DimensionNumbers:
    """Dimension numbers once ``axis`` of the right operand is gone."""
    (x_sum, y_sum), (x_batch, y_batch) = dims
    return (x_sum, [i - (i > axis) for i in y_sum]), (x_batch, [i - (i > axis) for i in y_batch])


def _along(mask: Array, x: Array, ragged: int, batch: Sequence[int], contracted: Sequence[int]) -> Array:
    """A mask [*batch, position] laid along the axes of ``x``; a ragged batch axis is itself the position."""
    axes = [*batch, ragged][-mask.ndim :] if ragged not in batch else [ragged]
    shape = [1] * x.ndim
    for axis in axes:
        shape[axis] = x.shape[axis]
    return mask.transpose(np.argsort(axes)).reshape(shape)
