"""Shapes: broadcasting, reshaping, slicing, padding, joining. Views wherever MLX has one."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import full, out_dtype, rules


@rules.define("broadcast_in_dim")
def broadcast_in_dim(equation: Equation, x: mx.array, *_: mx.array) -> mx.array:
    shape, dimensions = equation.shape, equation.params["broadcast_dimensions"]
    if x.shape == shape:
        return x
    aligned = [1] * len(shape)
    for axis, size in zip(dimensions, x.shape, strict=True):
        aligned[axis] = size
    # mx.broadcast_to adds leading axes by itself.
    leading = tuple(dimensions) == tuple(range(len(shape) - x.ndim, len(shape)))
    if not leading:
        x = add_axes(x, [axis for axis in range(len(shape)) if axis not in dimensions])
    return x if x.shape == shape else mx.broadcast_to(x, shape)


def add_axes(x: mx.array, axes: Sequence[int]) -> mx.array:
    """``x`` with axes of size 1 at the places ``axes`` of the result: a view."""
    return mx.expand_dims(x, list(axes)) if axes else x


@rules.define("reshape")
def reshape(equation: Equation, x: mx.array, *_: mx.array) -> mx.array:
    dimensions = equation.params["dimensions"]
    if dimensions is not None:
        x = mx.transpose(x, dimensions)
    return reshape_to(x, equation.shape)


def reshape_to(x: mx.array, shape: Sequence[int]) -> mx.array:
    return x if x.shape == tuple(shape) else mx.reshape(x, tuple(shape))


@rules.define("transpose")
def transpose(equation: Equation, x: mx.array) -> mx.array:
    return permute(x, equation.params["permutation"])


def permute(x: mx.array, permutation: Sequence[int]) -> mx.array:
    """``x`` with its axes in the order ``permutation``, and ``x`` itself when that is the order it has."""
    return x if list(permutation) == list(range(x.ndim)) else mx.transpose(x, list(permutation))


@rules.define("squeeze")
def squeeze(equation: Equation, x: mx.array) -> mx.array:
    dimensions = equation.params["dimensions"]
    return mx.squeeze(x, list(dimensions)) if dimensions else x


@rules.define("expand_dims")
def expand_dims(equation: Equation, x: mx.array) -> mx.array:
    return add_axes(x, equation.params["dimensions"])


@rules.define("slice")
def slice_(equation: Equation, x: mx.array) -> mx.array:
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    return take_slice(x, params["start_indices"], params["limit_indices"], strides)


def take_slice(x: mx.array, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> mx.array:
    """``x[starts:limits:strides]``: a view."""
    index = tuple(slice(*bounds) for bounds in zip(starts, limits, strides, strict=True))
    whole = all(a == 0 and b == n and s == 1 for a, b, s, n in zip(starts, limits, strides, x.shape, strict=True))
    return x if whole else x[index]


@rules.define("pad")
def pad(equation: Equation, x: mx.array, value: mx.array) -> mx.array:
    return pad_with(x, value, equation.params["padding_config"])


def pad_with(x: mx.array, value: mx.array, config: Sequence[tuple[int, int, int]]) -> mx.array:
    """Pad by (low, high, interior) per axis; a negative low or high cuts away."""
    if any(interior and n > 1 for (_, _, interior), n in zip(config, x.shape, strict=True)):
        x = _spread(x, value, [interior for _, _, interior in config])
    widths = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    if any(low or high for low, high in widths):
        x = mx.pad(x, widths, constant_values=value)
    starts = [max(-low, 0) for low, _, _ in config]
    limits = [max(n - max(-high, 0), start) for n, (_, high, _), start in zip(x.shape, config, starts, strict=True)]
    return take_slice(x, starts, limits, [1] * x.ndim)


def _spread(x: mx.array, value: mx.array, interior: Sequence[int]) -> mx.array:
    """Put ``interior`` copies of ``value`` between neighbours along each axis."""
    inner = [1 if n < 2 else gap + 1 for n, gap in zip(x.shape, interior, strict=True)]
    cells = [size for n, step in zip(x.shape, inner, strict=True) for size in (n, step)]
    apart = mx.reshape(x, [size for n in x.shape for size in (n, 1)])
    apart = mx.pad(apart, [(0, w) for step in inner for w in (0, step - 1)], constant_values=value)
    assert list(apart.shape) == cells
    merged = mx.reshape(apart, [n * step for n, step in zip(x.shape, inner, strict=True)])
    limits = [n if step == 1 else n * step - (step - 1) for n, step in zip(x.shape, inner, strict=True)]
    return take_slice(merged, [0] * x.ndim, limits, [1] * x.ndim)


@rules.define("concatenate")
def concatenate(equation: Equation, *parts: mx.array) -> mx.array:
    return join(parts, equation.params["dimension"])


def join(parts: Sequence[mx.array], axis: int) -> mx.array:
    """Concatenate; empty parts are left out."""
    kept = [part for part in parts if part.shape[axis]] or list(parts[:1])
    return kept[0] if len(kept) == 1 else mx.concatenate(kept, axis=axis)


@rules.define("rev")
def rev(equation: Equation, x: mx.array) -> mx.array:
    return flip(x, equation.params["dimensions"])


def flip(x: mx.array, axes: Sequence[int]) -> mx.array:
    """``x`` backwards along ``axes``: a view."""
    index = tuple(slice(None, None, -1) if axis in axes else slice(None) for axis in range(x.ndim))
    return x[index] if any(x.shape[axis] > 1 for axis in axes) else x


@rules.define("broadcast_to")
def broadcast_to(equation: Equation, x: mx.array) -> mx.array:
    return mx.broadcast_to(x, equation.shape)


@rules.define("iota")
def iota(equation: Equation, *_: mx.array) -> mx.array:
    shape, axis = equation.shape, equation.params["dimension"]
    row = counting(shape[axis], out_dtype(equation))
    aligned = [size if i == axis else 1 for i, size in enumerate(shape)]
    return row if len(shape) == 1 else mx.broadcast_to(mx.reshape(row, aligned), shape)


def counting(length: int, dtype: mx.Dtype) -> mx.array:
    """0, 1, 2, ... each rounded to ``dtype`` (MLX's own range sums steps in ``dtype``, which is less exact)."""
    if dtype in (mx.float16, mx.bfloat16, mx.float32, mx.float64, mx.bool_, mx.complex64):
        return mx.arange(length, dtype=mx.int32).astype(dtype)
    return mx.arange(length, dtype=mx.int32).astype(dtype) if dtype.size < 4 else mx.arange(length, dtype=dtype)


@rules.define("split")
def split(equation: Equation, x: mx.array) -> list[mx.array]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    return list(mx.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)) if len(sizes) > 1 else [x]


@rules.define("stack")
def stack(equation: Equation, *parts: mx.array) -> mx.array:
    return mx.stack(list(parts), axis=equation.params["axis"])


@rules.define("unstack")
def unstack(equation: Equation, x: mx.array) -> list[mx.array]:
    axis = equation.params["axis"]
    parts = mx.split(x, x.shape[axis], axis=axis) if x.shape[axis] > 1 else [x] * x.shape[axis]
    return [mx.squeeze(part, axis) for part in parts]


@rules.define("tile")
def tile(equation: Equation, x: mx.array) -> mx.array:
    return mx.tile(x, list(equation.params["reps"]))


@rules.define("empty", "empty2")
def empty(equation: Equation) -> mx.array:
    return full(equation.shape, 0, out_dtype(equation))


@rules.define("zeros_like")
def zeros_like(equation: Equation, _: mx.array) -> mx.array:
    return full(equation.shape, 0, out_dtype(equation))


@rules.define("tie")
def tie(_: Equation, x: mx.array, y: mx.array) -> mx.array:
    return y
