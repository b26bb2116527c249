"""Reading and writing windows at computed places: ``gather``, ``dynamic_slice``, ``dynamic_update_slice``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.addressing import Labels, Windows, arrange, bounded
from m2ml_mlx.rules.table import (
    constant_like,
    full,
    highest,
    is_bool,
    is_complex,
    is_float,
    is_unsigned,
    lowest,
    out_dtype,
    rules,
)


@rules.define("gather")
def gather(equation: Equation, operand: mx.array, indices: mx.array) -> mx.array:
    windows, shape = Windows.of_gather(equation), equation.shape
    if 0 in operand.shape or 0 in shape:
        return full(shape, _fill_value(equation, operand), out_dtype(equation))
    starts, fits = windows.starts(indices)
    x = arrange(*_read(windows, operand, starts), windows.labels, shape)
    if fits is None or not windows.dropping:
        return x
    return mx.where(windows.spread(fits), x, constant_like(x, _fill_value(equation, x)))


def _fill_value(equation: Equation, x: mx.array) -> complex:
    value: complex | None = equation.params["fill_value"]
    if value is not None:
        return value
    if is_float(x) or is_complex(x):
        return math.nan
    return int(highest(x.dtype) if is_unsigned(x) or is_bool(x) else lowest(x.dtype))


def _read(windows: Windows, x: mx.array, starts: Mapping[int, mx.array]) -> tuple[mx.array, Labels]:
    """The windows, and what the axes of the result run along."""
    everything = tuple(range(x.ndim))
    if not windows.moving:
        return x, everything
    if windows.count == 1:
        origin, axes = windows.origin(starts)
        return mx.slice(x, origin, axes, windows.sizes), everything
    if len(windows.moving) == 1 and not windows.partial and windows.moving[0] in starts:
        (d,) = windows.moving
        return mx.take(x, starts[d], axis=d), (*everything[:d], *windows.batch_labels, *everything[d + 1 :])
    along = _along_axis(windows, starts)
    if along is not None:
        return _take_along_axis(windows, x, starts[along], along)
    if windows.moving != everything[: len(windows.moving)]:
        x = x.transpose((*windows.moving, *windows.spanned))
    x = x[tuple(windows.index_arrays(starts))]
    return x, (*windows.batch_labels, *windows.partial, *windows.spanned)


def _along_axis(windows: Windows, starts: Mapping[int, mx.array]) -> int | None:
    """The operand axis along which single elements are taken while all others run along with batch axes."""
    indexed = [d for d in windows.moving if d in starts]
    others = {d for d in range(len(windows.shape)) if d not in indexed}
    single = len(indexed) == 1 and not windows.partial and others == set(windows.paired) - set(indexed)
    return indexed[0] if single else None


def _take_along_axis(windows: Windows, x: mx.array, index: mx.array, along: int) -> tuple[mx.array, Labels]:
    free = tuple(axis for axis in windows.batch_labels if ~axis not in windows.paired.values())
    before = tuple(~windows.paired[d] for d in range(along))
    after = tuple(~windows.paired[d] for d in range(along + 1, x.ndim))
    labels = (*before, *free, *after)
    index = arrange(index, windows.batch_labels, labels, [windows.batch[~axis] for axis in labels])
    counts = index.shape
    if len(free) != 1:
        index = index.reshape((*x.shape[:along], -1, *x.shape[along + 1 :]))
    x = mx.take_along_axis(x, index, along)
    return (x if len(free) == 1 else x.reshape(counts)), labels


def _origin(starts: Sequence[mx.array], shape: Sequence[int], sizes: Sequence[int]) -> tuple[mx.array, list[int]]:
    """The start of a window that has been moved into the array, and the axes it is given for."""
    moving = [d for d, (n, size) in enumerate(zip(shape, sizes, strict=True)) if size < n]
    bounds = [bounded(starts[d], shape[d] - sizes[d]) for d in moving]
    return (mx.stack(bounds) if len(moving) > 1 else bounds[0].reshape(1)), moving


@rules.define("dynamic_slice")
def dynamic_slice(equation: Equation, x: mx.array, *starts: mx.array) -> mx.array:
    if x.shape == equation.shape:
        return x
    if 0 in equation.shape:
        return mx.zeros(equation.shape, x.dtype)
    origin, moving = _origin(starts, x.shape, equation.shape)
    return mx.slice(x, origin, moving, equation.shape)


@rules.define("dynamic_update_slice")
def dynamic_update_slice(equation: Equation, x: mx.array, update: mx.array, *starts: mx.array) -> mx.array:
    if update.shape == x.shape:
        return update
    if 0 in update.shape:
        return x
    origin, moving = _origin(starts, x.shape, update.shape)
    return mx.slice_update(x, update, origin, moving)
