"""Gather, scatter and dynamic slices, with out-of-range indices as JAX defines them.

Both gather and scatter move windows. A window begins at an index vector and spans ``sizes`` elements per axis of
the operand; the positions it covers are worked out once, in `window_positions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, greatest, is_complex, is_float, is_unsigned, least, rules


def _signed(indices: Array) -> Array:
    """Indices as int64; those beyond it count as out of range all the same."""
    return (
        np.minimum(indices, np.iinfo(np.int64).max).astype(np.int64)
        if indices.dtype == np.uint64
        else indices.astype(np.int64)
    )


def _mode(equation: Equation) -> str:
    return str(equation.params["mode"].name)


def window_starts(
    shape: Sequence[int], indices: Array, mapped: Sequence[int], batching: Sequence[int], index_batching: Sequence[int]
) -> list[Array]:
    """Per axis of the operand, where each window begins: an array over the batch axes of ``indices``, or 0."""
    starts = [np.zeros((), np.int64)] * len(shape)
    for column, axis in enumerate(mapped):
        starts[axis] = indices[..., column]
    batch = indices.shape[:-1]
    for axis, index_axis in zip(batching, index_batching, strict=True):
        starts[axis] = np.arange(batch[index_axis]).reshape([-1 if i == index_axis else 1 for i in range(len(batch))])
    return starts


def inside(starts: Sequence[Array], shape: Sequence[int], sizes: Sequence[int], batch: Sequence[int]) -> Array:
    """Whether each window lies wholly within the operand."""
    result = np.ones(batch, np.bool_)
    for start, length, size in zip(starts, shape, sizes, strict=True):
        result &= (start >= 0) & (start <= length - size)
    return result


def positions(starts: Sequence[Array], shape: Sequence[int], sizes: Sequence[int], batch_ndim: int) -> list[Array]:
    """Per axis, the positions covered, clamped into range; they broadcast to [*batch, *sizes]."""
    result = []
    for axis, (start, length, size) in enumerate(zip(starts, shape, sizes, strict=True)):
        begin = np.clip(start, 0, max(length - size, 0))
        begin = begin.reshape(begin.shape + (1,) * len(shape)) if begin.ndim == batch_ndim else begin
        result.append(begin + np.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return result


def _fill_value(equation: Equation) -> Any:
    value, dtype = equation.params["fill_value"], equation.dtype
    if value is not None:
        return value
    if is_float(dtype) or is_complex(dtype):
        return np.nan
    return greatest(dtype) if is_unsigned(dtype) or dtype == np.bool_ else least(dtype)


def _place(batch_ndim: int, offset_dims: Sequence[int], ndim: int) -> list[int]:
    """The permutation from [*batch, *offset] to the order of the result."""
    rest = iter(range(batch_ndim))
    offsets = {dim: batch_ndim + i for i, dim in enumerate(offset_dims)}
    return [offsets[i] if i in offsets else next(rest) for i in range(ndim)]


@rules.define("gather")
def gather(equation: Equation, operand: Array, indices: Array) -> Array:
    """One window per index vector; out of range, it is moved inside or, in fill mode, replaced by the fill value."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    indices = _signed(indices)
    batch = indices.shape[:-1]
    starts = window_starts(
        operand.shape,
        indices,
        numbers.start_index_map,
        numbers.operand_batching_dims,
        numbers.start_indices_batching_dims,
    )
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = _take(operand, starts, sizes, batch)
    if _mode(equation) == "FILL_OR_DROP":
        known = inside(starts, operand.shape, sizes, batch)
        if not known.all():
            fill = np.asarray(_fill_value(equation)).astype(operand.dtype)
            windows = np.where(known.reshape(batch + (1,) * operand.ndim), windows, fill)
    kept = [size for axis, size in enumerate(sizes) if axis not in dropped]
    return windows.reshape((*batch, *kept)).transpose(_place(len(batch), numbers.offset_dims, len(equation.shape)))


def _take(operand: Array, starts: Sequence[Array], sizes: Sequence[int], batch: Sequence[int]) -> Array:
    """[*batch, *sizes]. Axes taken whole are left to NumPy's slicing, which copies runs instead of elements."""
    ndim = operand.ndim
    if 0 in operand.shape:
        return np.zeros((*batch, *sizes), operand.dtype)
    chosen = [axis for axis in range(ndim) if sizes[axis] != operand.shape[axis] or starts[axis].ndim]
    whole = [axis for axis in range(ndim) if axis not in chosen]
    if not chosen:
        return np.broadcast_to(operand, (*batch, *sizes))
    picked = (
        [starts[axis] for axis in chosen],
        [operand.shape[axis] for axis in chosen],
        [sizes[axis] for axis in chosen],
    )
    index = tuple(positions(*picked, len(batch)))
    windows = operand.transpose(*chosen, *whole)[index]
    full = (*batch, *picked[2])
    windows = np.broadcast_to(windows, (*full, *(sizes[axis] for axis in whole)))
    order = np.argsort([*chosen, *whole])
    return windows.transpose(*range(len(batch)), *(len(batch) + order))


@dataclass(frozen=True, slots=True)
class Scatter:
    """Where each element of the updates goes: flat positions in the operand, for the windows that count."""

    targets: Array
    updates: Array


def plan_scatter(equation: Equation, operand: Array, indices: Array, updates: Array) -> Scatter:
    """A window that is not wholly inside is dropped, or moved inside in clip mode."""
    numbers = equation.params["dimension_numbers"]
    indices = _signed(indices)
    batch = indices.shape[:-1]
    removed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window_sizes = iter([updates.shape[i] for i in numbers.update_window_dims])
    sizes = [1 if axis in removed else next(window_sizes) for axis in range(operand.ndim)]
    starts = window_starts(
        operand.shape,
        indices,
        numbers.scatter_dims_to_operand_dims,
        numbers.operand_batching_dims,
        numbers.scatter_indices_batching_dims,
    )
    order = _place(len(batch), numbers.update_window_dims, updates.ndim)
    values = updates.transpose(np.argsort(order)).reshape((*batch, *sizes))
    targets = np.zeros((*batch, *sizes), np.int64)
    for length, position in zip(operand.shape, positions(starts, operand.shape, sizes, len(batch)), strict=True):
        targets = targets * length + position
    if _mode(equation) == "CLIP":
        return Scatter(targets.reshape(-1), values.reshape(-1))
    known = inside(starts, operand.shape, sizes, batch)
    return Scatter(targets[known].reshape(-1), values[known].reshape(-1))


def _define_scatter(kind: str, ufunc: np.ufunc) -> None:
    def rule(equation: Equation, operand: Array, indices: Array, updates: Array) -> Array:
        plan = plan_scatter(equation, operand, indices, updates)
        result = operand.flatten()
        ufunc.at(result, plan.targets, plan.updates)
        return result.reshape(operand.shape)

    rules.define(f"scatter_{kind}")(rule)


for _kind, _ufunc in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}.items():
    _define_scatter(_kind, _ufunc)


def scatter_replace(equation: Equation, operand: Array, indices: Array, updates: Array) -> Array:
    """Of several updates of one element the last stays."""
    plan = plan_scatter(equation, operand, indices, updates)
    result = operand.flatten()
    result[plan.targets] = plan.updates
    return result.reshape(operand.shape)


def scatter_apply(
    equation: Equation, function: Callable[..., Array], operand: Array, indices: Array, updates: Array
) -> Array:
    """``function(old, update)`` for one update after the other: in rounds in which no element occurs twice."""
    plan = plan_scatter(equation, operand, indices, updates)
    result = operand.flatten()
    pending = np.arange(plan.targets.size)
    while pending.size:
        _, first = np.unique(plan.targets[pending], return_index=True)
        now = pending[np.sort(first)]
        result[plan.targets[now]] = function(result[plan.targets[now]], plan.updates[now])
        pending = np.setdiff1d(pending, now)
    return result.reshape(operand.shape)


def _corner(shape: Sequence[int], sizes: Sequence[int], starts: Sequence[Array]) -> tuple[slice, ...]:
    begins = [
        int(np.clip(int(start), 0, length - size)) for start, length, size in zip(starts, shape, sizes, strict=True)
    ]
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


@rules.define("dynamic_slice")
def dynamic_slice(equation: Equation, operand: Array, *starts: Array) -> Array:
    """A slice whose start is moved so that it lies inside."""
    return operand[_corner(operand.shape, equation.shape, starts[: operand.ndim])]


@rules.define("dynamic_update_slice")
def dynamic_update_slice(equation: Equation, operand: Array, update: Array, *starts: Array) -> Array:
    result = operand.copy()
    result[_corner(operand.shape, update.shape, starts)] = update
    return result
