"""Writing windows at computed places: the scatter family.

Windows may overlap. Sums, products and extrema take every window in; plain ``scatter`` keeps the last one on
the CPU and, as JAX leaves it open, any one of them on a GPU. A window that does not fit is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce

import mlx.core as mx

from m2ml.interpreter import Code, Equation
from m2ml_mlx.rules.addressing import Windows, arrange, iota
from m2ml_mlx.rules.sorting import from_total_order, permutation, total_order
from m2ml_mlx.rules.table import (
    FLOATS,
    HALVES,
    constant,
    constant_like,
    highest,
    is_bool,
    is_complex,
    is_float,
    lowest,
    rules,
    unsupported,
)


def _put(x: mx.array, index: tuple[mx.array, ...], updates: mx.array) -> mx.array:
    out = x[...]
    out[index] = updates
    return out


@dataclass(frozen=True)
class Kind:
    """How an update meets what is there: one element, many at index arrays; and the update that does nothing."""

    combine: Callable[[mx.array, mx.array], mx.array]
    scatter: Callable[[mx.array, tuple[mx.array, ...], mx.array], mx.array]
    neutral: Callable[[mx.array], complex] | None = None


def _minus_zero(x: mx.array) -> complex:
    return complex(-0.0, -0.0) if is_complex(x) else -0.0 if is_float(x) else 0


SET = Kind(lambda old, new: new, _put)
ADD = Kind(mx.add, lambda x, index, updates: x.at[index].add(updates), _minus_zero)
MUL = Kind(mx.multiply, lambda x, index, updates: x.at[index].multiply(updates), lambda x: 1)
MIN = Kind(mx.minimum, lambda x, index, updates: x.at[index].minimum(updates), lambda x: highest(x.dtype))
MAX = Kind(mx.maximum, lambda x, index, updates: x.at[index].maximum(updates), lambda x: lowest(x.dtype))


@rules.define("scatter")
def scatter(equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    body = equation.params["update_jaxpr"]
    if isinstance(body, Code) and (body.steps or body.outputs != body.inputs[1:]):
        raise unsupported(equation, "its update is a function of the element that is there")
    return _scatter(SET, equation, operand, indices, updates)


def _accumulate(kind: Kind, equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    """Sums and products of half-precision windows are rounded once, from float32."""
    if operand.dtype in HALVES:
        wide = _scatter(kind, equation, operand.astype(mx.float32), indices, updates.astype(mx.float32))
        return wide.astype(operand.dtype)
    return _scatter(kind, equation, operand, indices, updates)


rules.define("scatter_add")(partial(_accumulate, ADD))
rules.define("scatter_mul")(partial(_accumulate, MUL))


@rules.define("scatter_sub")
def scatter_sub(equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    exact = is_float(updates) or is_complex(updates)
    minus = mx.negative(updates) if exact else mx.subtract(constant_like(updates, 0), updates)
    return _accumulate(ADD, equation, operand, indices, minus)


def _extremum(kind: Kind, equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    """Floats are compared as integers, which orders -0 below 0 and lets NaN win as XLA does."""
    if is_complex(operand):
        return _complex_extremum(kind, equation, operand, indices, updates)
    if is_bool(operand):
        return _scatter(kind, equation, operand.view(mx.uint8), indices, updates.view(mx.uint8)).view(mx.bool_)
    if operand.dtype not in FLOATS:
        return _scatter(kind, equation, operand, indices, updates)
    keys = _scatter(kind, equation, _comparable(kind, operand), indices, _comparable(kind, updates))
    return from_total_order(keys, operand.dtype)


def _complex_extremum(
    kind: Kind, equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array
) -> mx.array:
    """By rank among all elements, real part first: a NaN in an update wins, one in the operand loses, as in XLA."""
    loses, wins = (-math.inf, math.inf) if kind is MAX else (math.inf, -math.inf)
    # Of equal elements the later one has the higher rank: the update wins.
    first, second = ((operand, loses), (updates, wins))[:: 1 if kind is MAX else -1]
    parts = zip(_parts(*first), _parts(*second), strict=True)
    order = permutation([mx.concatenate(pair) for pair in parts], 0)
    ranks = mx.split(mx.argsort(order).astype(mx.int32), [first[0].size])[:: 1 if kind is MAX else -1]
    ranks = [rank.reshape(x.shape) for rank, x in zip(ranks, (operand, updates), strict=True)]
    chosen = _scatter(kind, equation, ranks[0], indices, ranks[1])
    values = mx.concatenate([first[0].reshape(-1), second[0].reshape(-1)])
    return mx.take(values, mx.take(order, chosen))


def _parts(x: mx.array, for_nan: float) -> tuple[mx.array, mx.array]:
    """Real and imaginary parts in a row, with ``for_nan`` in place of NaN and of what stands beside a NaN."""
    x = x.reshape(-1)
    nan = mx.isnan(x.real)
    return mx.where(nan, for_nan, x.real), mx.where(nan | mx.isnan(x.imag), for_nan, x.imag)


def _comparable(kind: Kind, x: mx.array) -> mx.array:
    keys = total_order(x)
    beyond = lowest(keys.dtype) if kind is MIN else highest(keys.dtype)
    return mx.where(mx.isnan(x), constant_like(keys, beyond), keys)


rules.define("scatter_min")(partial(_extremum, MIN))
rules.define("scatter_max")(partial(_extremum, MAX))


def _scatter(kind: Kind, equation: Equation, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    windows = Windows.of_scatter(equation)
    if updates.size == 0 or operand.size == 0:
        return operand
    if windows.count == 1:
        return _one_window(kind, windows, operand, indices, updates)
    if _one_element_each(windows):
        return _where_hit(kind, windows, operand, indices, updates)
    if operand.dtype.size == 8 and mx.default_device() == mx.Device(mx.gpu):
        # Metal has no 64-bit atomics.
        with mx.stream(mx.cpu):
            return _many_windows(kind, windows, operand, indices, updates)
    return _many_windows(kind, windows, operand, indices, updates)


def _one_window(kind: Kind, windows: Windows, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    update = arrange(updates, windows.labels, tuple(range(operand.ndim)), windows.sizes)
    starts, fits = windows.starts(indices)
    if not windows.dropping:
        fits = None
    if not windows.moving:
        new = kind.combine(operand, update)
        return new if fits is None else mx.where(fits.reshape((1,) * operand.ndim), new, operand)
    origin, axes = windows.origin(starts)
    if kind is not SET or fits is not None:
        old = mx.slice(operand, origin, axes, windows.sizes)
        update = kind.combine(old, update)
        if fits is not None:
            update = mx.where(fits.reshape((1,) * operand.ndim), update, old)
    return mx.slice_update(operand, update, origin, axes)


def _one_element_each(windows: Windows) -> bool:
    """Whether each batch element of the operand is updated in one element only, so that no two updates meet."""
    paired = set(windows.paired.values())
    single = all(size == 1 and (d in windows.paired or d in windows.columns) for d, size in enumerate(windows.sizes))
    return single and all(i in paired or n == 1 for i, n in enumerate(windows.batch))


def _where_hit(kind: Kind, windows: Windows, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    """Elementwise, which fuses with whatever surrounds it: the gradient of picking one entry per row."""
    everything = tuple(range(operand.ndim))
    place = tuple(next((~i for a, i in windows.paired.items() if a == d), d) for d in everything)
    ones = tuple(n if d in windows.paired else 1 for d, n in enumerate(operand.shape))
    starts = windows.raw_starts(indices) if windows.dropping else windows.starts(indices)[0]
    hits = []
    for d, start in starts.items():
        start = arrange(start, windows.batch_labels, place, ones)
        hits.append(start == iota(operand.shape[d], start.dtype, operand.ndim, d))
    update = arrange(updates, windows.labels, place, ones)
    new = kind.combine(operand, update)
    return mx.where(reduce(mx.logical_and, hits), new, operand) if hits else new


def _many_windows(kind: Kind, windows: Windows, operand: mx.array, indices: mx.array, updates: mx.array) -> mx.array:
    starts, fits = windows.starts(indices)
    order = (*windows.moving, *windows.spanned)
    shape = tuple(operand.shape[d] for d in order)
    x = arrange(operand, tuple(range(operand.ndim)), order, shape)
    rows = (*windows.batch_labels, *windows.partial, *windows.spanned)
    sizes = (*windows.batch, *(windows.sizes[d] for d in (*windows.partial, *windows.spanned)))
    updates = arrange(updates, windows.labels, rows, sizes)
    if windows.dropping and fits is not None:
        mask = fits.reshape(windows.batch + (1,) * (updates.ndim - fits.ndim))
        if kind.neutral is not None:
            updates = mx.where(mask, updates, constant_like(updates, kind.neutral(updates)))
        else:
            starts, updates = _repeat_last(windows, operand, starts, fits, mask, updates)
    if windows.moving:
        x = kind.scatter(x, tuple(windows.index_arrays(starts)), updates)
    else:
        x = mx.squeeze(kind.scatter(x[None], (mx.zeros(windows.batch, mx.uint32),), updates), 0)
    return arrange(x, order, tuple(range(operand.ndim)), operand.shape)


def _repeat_last(
    windows: Windows,
    operand: mx.array,
    starts: Mapping[int, mx.array],
    fits: mx.array,
    mask: mx.array,
    updates: mx.array,
) -> tuple[dict[int, mx.array], mx.array]:
    """Turn each window that does not fit into a copy of the last one that does: writing that again changes nothing.

    Where no window fits, all of them write what is already there.
    """
    count = windows.count
    last = mx.max(mx.where(fits.reshape(count), mx.arange(count, dtype=mx.int32), constant(-1, mx.int32)))
    found, last = last >= 0, mx.maximum(last, 0)
    moved = {}
    for d, start in _explicit(windows, starts).items():
        moved[d] = mx.where(fits, start, mx.take(start.reshape(count), last))
    window = updates.shape[len(windows.batch) :]
    update = mx.take(updates.reshape((count, *window)), last, axis=0)
    current = operand
    if windows.moving:
        origin, axes = windows.origin({d: mx.take(start.reshape(count), last) for d, start in moved.items()})
        current = mx.slice(operand, origin, axes, windows.sizes)
    current = arrange(current, tuple(range(operand.ndim)), (*windows.partial, *windows.spanned), window)
    return moved, mx.where(mask, updates, mx.where(found, update, current))


def _explicit(windows: Windows, starts: Mapping[int, mx.array]) -> dict[int, mx.array]:
    """The starts on every operand axis that windows move along, the paired ones too."""
    dtype = next(iter(starts.values())).dtype
    paired = {
        d: mx.broadcast_to(iota(windows.batch[i], dtype, len(windows.batch), i), windows.batch)
        for d, i in windows.paired.items()
    }
    return {**paired, **starts}
