"""Sliding windows: pooling, its gradients, and running sums that JAX writes as windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.conversions import convert
from m2ml_mlx.rules.reductions import REDUCTIONS, apply_body, body_of, combine, identity_of, monoid_of
from m2ml_mlx.rules.structure import pad_with, take_slice
from m2ml_mlx.rules.table import cast, constant, constant_like, out_dtype, rules, unsupported, wide

#: Windows with a function of their own are folded element by element, up to this many.
_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Windows:
    """Where windows lie: per axis their size, their stride, and the dilation between their elements."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, equation: Equation) -> Windows:
        params = equation.params
        sizes = tuple(params["window_dimensions"])
        ones = (1,) * len(sizes)
        base = params.get("base_dilation") or ones
        padding = tuple((low, high, step - 1) for (low, high), step in zip(params["padding"], base, strict=True))
        return cls(sizes, tuple(params["window_strides"]), tuple(params.get("window_dilation") or ones), padding)

    def counts(self, shape: Sequence[int]) -> list[int]:
        """The number of windows per axis of a padded array."""
        spans = [(size - 1) * step + 1 for size, step in zip(self.sizes, self.dilation, strict=True)]
        return [max((n - span) // s + 1, 0) for n, span, s in zip(shape, spans, self.strides, strict=True)]

    def offsets(self) -> list[tuple[int, ...]]:
        """The offset of each window element from the window's first, the last axis fastest."""
        axes = (range(0, n * step, step) for n, step in zip(self.sizes, self.dilation, strict=True))
        return list(itertools.product(*axes))

    def element(self, padded: mx.array, offset: Sequence[int]) -> mx.array:
        """The element at ``offset`` of every window: a strided view."""
        counts = self.counts(padded.shape)
        limits = [max(o, o + (n - 1) * s + 1) for o, n, s in zip(offset, counts, self.strides, strict=True)]
        return take_slice(padded, offset, limits, self.strides)


# Reductions over windows ------------------------------------------------------------------------------------


def _window_rule(monoid: str) -> Callable[[Equation, mx.array], mx.array]:
    return lambda equation, x: reduce_windows(equation, x, monoid, identity_of(monoid, x.dtype))


for _monoid, _name in {"add": "sum", "max": "max", "min": "min"}.items():
    rules.define(f"reduce_window_{_name}")(_window_rule(_monoid))


@rules.define("reduce_window")
def reduce_window(equation: Equation, *arrays: mx.array) -> list[mx.array]:
    half = len(arrays) // 2
    monoid = monoid_of(body_of(equation))
    if monoid is not None:
        return [combine(monoid, reduce_windows(equation, arrays[0], monoid, arrays[1]), arrays[1])]
    windows = Windows.of(equation)
    if math.prod(windows.sizes) > _LONGEST:
        raise unsupported(equation, f"its windows have more than {_LONGEST} elements and a function of their own")
    initial = list(arrays[half:])
    padded = [pad_with(x, fill, windows.padding) for x, fill in zip(arrays[:half], initial, strict=True)]
    totals = [mx.broadcast_to(fill, equation.shape) for fill in initial]
    for offset in windows.offsets():
        totals = apply_body(equation, totals, [windows.element(x, offset) for x in padded])
    return totals


def reduce_windows(equation: Equation, x: mx.array, monoid: str, fill: mx.array) -> mx.array:
    """Reduce every window, one axis after the other; ``fill`` is what padding holds."""
    windows = Windows.of(equation)
    x = pad_with(x, fill, windows.padding)
    counts = windows.counts(x.shape)
    if 0 in counts:
        return mx.broadcast_to(constant_like(x, 0), counts)
    whole = [axis for axis in range(x.ndim) if _tiles(windows, axis) and windows.sizes[axis] > 1]
    dtype = x.dtype
    if monoid in ("add", "mul") and max(windows.sizes) > 2:
        x = wide(x)
    for axis in range(x.ndim):
        if axis not in whole:
            x = _slide(x, axis, windows, counts[axis], monoid)
    return cast(_reduce_tiles(x, whole, windows, counts, monoid) if whole else x, dtype)


def _tiles(windows: Windows, axis: int) -> bool:
    """Whether windows follow one another along ``axis`` without gaps or overlap."""
    return windows.sizes[axis] == windows.strides[axis] and windows.dilation[axis] == 1


def _reduce_tiles(x: mx.array, axes: Sequence[int], windows: Windows, counts: Sequence[int], monoid: str) -> mx.array:
    """Windows that tile an axis: split the axis and reduce, as a pooling layer does."""
    limits = [counts[i] * windows.sizes[i] if i in axes else n for i, n in enumerate(x.shape)]
    x = take_slice(x, [0] * x.ndim, limits, [1] * x.ndim)
    cells = [[counts[i], windows.sizes[i]] if i in axes else [n] for i, n in enumerate(x.shape)]
    inner = [axis + place + 1 for place, axis in enumerate(axes)]
    return REDUCTIONS[monoid](mx.reshape(x, list(itertools.chain(*cells))), inner)


def _slide(x: mx.array, axis: int, windows: Windows, count: int, monoid: str) -> mx.array:
    """Reduce along one axis by doubling: spans of 1, 2, 4, ... elements, those in the window's size combined."""
    size, stride, step = windows.sizes[axis], windows.strides[axis], windows.dilation[axis]
    if size == 1:
        return _along(x, axis, 0, count, stride)
    if size == x.shape[axis] and count == 1:
        return mx.expand_dims(REDUCTIONS[monoid](x, [axis]), axis)
    if size <= 4:
        out = _along(x, axis, 0, count, stride)
        for place in range(1, size):
            out = combine(monoid, out, _along(x, axis, place * step, count, stride))
        return out
    total: mx.array | None = None
    done, span = 0, 1
    while done < size:
        if size & span:
            part = _along(x, axis, done * step, count, stride)
            total = part if total is None else combine(monoid, total, part)
            done += span
        if done < size:
            length = x.shape[axis] - span * step
            x = combine(monoid, _along(x, axis, 0, length, 1), _along(x, axis, span * step, length, 1))
            span *= 2
    assert total is not None
    return total


def _along(x: mx.array, axis: int, start: int, count: int, stride: int) -> mx.array:
    """``count`` elements of ``x`` along ``axis`` from ``start``: a view."""
    starts, limits, strides = [0] * x.ndim, list(x.shape), [1] * x.ndim
    starts[axis], limits[axis], strides[axis] = start, start + (count - 1) * stride + 1, stride
    return take_slice(x, starts, limits, strides)


# Selecting one element of every window ------------------------------------------------------------------------


def _keeps(equation: Equation) -> tuple[Callable[[mx.array, mx.array], mx.array], str]:
    """The comparison by which the selected element stays selected, and the monoid whose identity loses it."""
    name = equation.params["select_prim"].name
    if name not in ("ge", "le"):
        raise unsupported(equation, f"elements are selected by {name}, not by ge or le")
    return (mx.greater_equal, "max") if name == "ge" else (mx.less_equal, "min")


@rules.define("select_and_gather_add")
def select_and_gather_add(equation: Equation, tangents: mx.array, x: mx.array) -> mx.array:
    keeps, monoid = _keeps(equation)
    windows = Windows.of(equation)
    x = pad_with(x, identity_of(monoid, x.dtype), windows.padding)
    tangents = pad_with(tangents, constant_like(tangents, 0), windows.padding)
    best, chosen = identity_of(monoid, x.dtype), constant_like(tangents, 0)
    for offset in windows.offsets():
        value = windows.element(x, offset)
        stays = keeps(best, value)
        best = mx.where(stays, best, value)
        chosen = mx.where(stays, chosen, windows.element(tangents, offset))
    return mx.broadcast_to(chosen, equation.shape)


@rules.define("select_and_scatter_add")
def select_and_scatter_add(equation: Equation, source: mx.array, x: mx.array) -> mx.array:
    """Each source element is added to the first selected element of its window: the gradient of max pooling."""
    keeps, monoid = _keeps(equation)
    windows = Windows.of(equation)
    shape, dtype = x.shape, out_dtype(equation)
    x = pad_with(x, identity_of(monoid, x.dtype), windows.padding)
    counts = windows.counts(x.shape)
    offsets = windows.offsets()
    if 0 in counts:
        return mx.broadcast_to(constant(0, dtype), shape)
    best, place = windows.element(x, offsets[0]), constant(0, mx.int32)
    for index, offset in enumerate(offsets[1:], 1):
        value = windows.element(x, offset)
        stays = keeps(best, value)
        best = mx.where(stays, best, value)
        place = mx.where(stays, place, constant(index, mx.int32))
    zero = constant_like(source, 0)
    parts = {offset: mx.where(place == index, source, zero) for index, offset in enumerate(offsets)}
    out = _interleave(parts, windows, x.shape)
    return convert(pad_with(out, constant_like(out, 0), [(-low, -high, 0) for low, high, _ in windows.padding]), dtype)


def _interleave(parts: dict[tuple[int, ...], mx.array], windows: Windows, shape: Sequence[int]) -> mx.array:
    """Put the part of each window offset back where its windows lie, adding where windows overlap.

    Offsets that are equal modulo the strides share places: they are summed, shifted against each other, and
    one stack lays the sums of all remainders side by side.
    """
    strides = windows.strides
    reach = [-(-size // stride) for size, stride in zip(windows.sizes, strides, strict=True)]
    sums: dict[tuple[int, ...], mx.array] = {}
    for offset, part in parts.items():
        remainder = tuple(o % s for o, s in zip(offset, strides, strict=True))
        shifts = [(o // s, r - 1 - o // s, 0) for o, s, r in zip(offset, strides, reach, strict=True)]
        part = pad_with(part, constant_like(part, 0), shifts)
        sums[remainder] = combine("add", sums[remainder], part) if remainder in sums else part
    cells = next(iter(sums.values())).shape
    if len(sums) == 1 and max(strides) == 1:
        out = sums[(0,) * len(shape)]
    else:
        zero = mx.broadcast_to(constant_like(next(iter(sums.values())), 0), cells)
        places = itertools.product(*(range(s) for s in strides))
        out = mx.unflatten(mx.stack([sums.get(place, zero) for place in places], axis=-1), -1, strides)
        out = mx.transpose(out, [axis for i in range(len(shape)) for axis in (i, len(shape) + i)])
        out = mx.reshape(out, [n * s for n, s in zip(cells, strides, strict=True)])
    missing = [(0, n - have, 0) for n, have in zip(shape, out.shape, strict=True)]
    return pad_with(out, constant_like(out, 0), missing)
