"""Sliding windows: pooling, its derivatives, and convolution.

A window is walked by its offsets: for each offset one strided slice of the padded operand holds the element
that every window has there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.dot import operands_for
from m2ml_reference.reductions import UFUNCS, identity_of
from m2ml_reference.structure import pad_array
from m2ml_reference.values import Array, rules


def padded(x: Array, value: Array, params: Mapping[str, Any]) -> Array:
    dilation = params.get("base_dilation") or (1,) * x.ndim
    config = [(low, high, d - 1) for (low, high), d in zip(params["padding"], dilation, strict=True)]
    return pad_array(x, value, config)


def slices(x: Array, params: Mapping[str, Any], shape: Sequence[int]) -> Iterator[Array]:
    """For each window offset, in row-major order, the element that each of the ``shape`` windows has there."""
    dilation = params.get("window_dilation") or (1,) * x.ndim
    for offset in np.ndindex(*params["window_dimensions"]):
        begins = [o * d for o, d in zip(offset, dilation, strict=True)]
        strides = params["window_strides"]
        yield x[tuple(slice(b, b + n * s, s) for b, n, s in zip(begins, shape, strides, strict=True))]


def _define_pooling(kind: str) -> None:
    def rule(equation: Equation, x: Array) -> Array:
        start = identity_of(kind, x.dtype)
        result = np.full(equation.shape, start)
        for part in slices(padded(x, start, equation.params), equation.params, equation.shape):
            result = UFUNCS[kind](result, part)
        return result

    rules.define(f"reduce_window_{kind}")(rule)


for _kind in ("sum", "max", "min"):
    _define_pooling(_kind)


def select_in_windows(equation: Equation, x: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Per window, the flat index of the selected element of ``x``, and whether the window holds one at all.

    ``select_prim`` compares the element selected so far with the next: the first of equals stays with ``ge``.
    """
    prefer = {"ge": np.greater_equal, "le": np.less_equal, "gt": np.greater, "lt": np.less}[
        equation.params["select_prim"].name
    ]
    indices = padded(np.arange(x.size).reshape(x.shape), np.asarray(-1), equation.params)
    return select_by(prefer, x, indices, equation.params, shape)


def select_by(
    prefer: Any, x: Array, indices: Array, params: Mapping[str, Any], shape: Sequence[int]
) -> tuple[Array, Array]:
    flat = x.reshape(-1) if x.size else np.zeros(1, x.dtype)
    selected = np.full(shape, -1)
    for part in slices(indices, params, shape):
        replace = (part >= 0) & ((selected < 0) | ~np.asarray(prefer(flat[selected], flat[part]), dtype=bool))
        selected = np.where(replace, part, selected)
    return selected, selected >= 0


@rules.define("select_and_scatter_add")
def select_and_scatter_add(equation: Equation, source: Array, operand: Array) -> Array:
    """Each window's source is added where the window's selected element stands."""
    selected, found = select_in_windows(equation, operand, source.shape)
    result = np.zeros(operand.size, source.dtype)
    np.add.at(result, selected[found], source[found])
    return result.reshape(operand.shape)


@rules.define("select_and_gather_add")
def select_and_gather_add(equation: Equation, tangents: Array, operand: Array) -> Array:
    """Each window's tangent at its selected element; 0 for a window of padding alone."""
    selected, found = select_in_windows(equation, operand, equation.shape)
    flat = tangents.reshape(-1) if tangents.size else np.zeros(1, tangents.dtype)
    return np.where(found, flat[selected], tangents.dtype.type(0))


def _groups(x: Array, axis: int, count: int) -> Array:
    """Split ``axis`` into ``count`` groups and move the group axis to the front."""
    shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    return np.moveaxis(x.reshape(shape), axis, 0)


def _patches(x: Array, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """A view [..., *windows, *kernel] of the trailing axes of ``x``."""
    rank = len(kernel)
    lead, sizes = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
    counts = [
        max((n - (k - 1) * d - 1) // s + 1, 0) if k else n
        for n, k, s, d in zip(sizes, kernel, strides, dilation, strict=True)
    ]
    steps = x.strides[x.ndim - rank :]
    outer = [b * s for b, s in zip(steps, strides, strict=True)]
    inner = [b * d for b, d in zip(steps, dilation, strict=True)]
    shape = (*lead, *counts, *kernel)
    if 0 in shape:
        return np.zeros(shape, x.dtype)
    return np.lib.stride_tricks.as_strided(x, shape, (*x.strides[: x.ndim - rank], *outer, *inner), writeable=False)


def convolve(x: Array, w: Array, strides: Sequence[int], dilation: Sequence[int], groups: tuple[int, int]) -> Array:
    """``x`` [n, c, *spatial], already padded, with ``w`` [o, i, *kernel], as one matrix product per group."""
    features, batches = groups
    rank = w.ndim - 2
    count = max(features, batches)
    x = _groups(x, 1 if features > 1 else 0, count)
    w = _groups(w, 0, count)
    patches = _patches(x, w.shape[3:], strides, dilation)
    windows = patches.shape[3 : 3 + rank]
    order = (0, 1, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    contracted = int(np.prod(w.shape[2:]))
    rows = patches.transpose(order).reshape(count, x.shape[1] * int(np.prod(windows)), contracted)
    out = rows @ w.reshape(count, w.shape[1], contracted).swapaxes(1, 2)
    out = out.reshape(count, x.shape[1], *windows, w.shape[1])
    out = out.transpose(1, 0, out.ndim - 1, *range(2, out.ndim - 1))
    return out.reshape(x.shape[1], count * w.shape[1], *windows)


@rules.define("conv_general_dilated")
def conv_general_dilated(equation: Equation, lhs: Array, rhs: Array) -> Array:
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = operands_for(equation, lhs, rhs)
    x, w = lhs.transpose(numbers.lhs_spec), rhs.transpose(numbers.rhs_spec)
    config = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = pad_array(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *config])
    groups = params["feature_group_count"], params["batch_group_count"]
    out = convolve(x, w, params["window_strides"], params["rhs_dilation"], groups)
    return out.transpose(np.argsort(numbers.out_spec))
