"""Hold one array against its bound: how far each element is, in units of what it may differ by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.report import ClassReport, OutputReport
from m2ml.equivalence.rounding import tiny, unit
from m2ml.precision import narrow

Array = np.ndarray[Any, Any]

#: Most cells of a map of differences in each direction.
MAP_CELLS = 256

CLASSES = ("finite", "zero", "subnormal", "infinite", "nan", "exact", "decided by rounding")


def shares(got: Array, bound: Bound) -> Array:
    """The distance of each element from its expected value in units of the bound: at most 1 exactly if it is inside.

    Inside is what rounds into ``expected ± allowed`` once both ends are rounded to the dtype: a result that may round
    to infinity may be infinite. Where nothing is allowed, the sign of a zero counts. Integers are 0 or infinitely far.
    """
    if not unit(bound.dtype):
        return np.where(got == bound.expected, 0.0, np.inf)
    if bound.dtype.kind != "c":
        return _real_shares(got, bound.expected, bound.allowed)
    parts = [_real_shares(getattr(got, p), getattr(bound.expected, p), bound.allowed) for p in ("real", "imag")]
    return np.maximum(*parts)


def _real_shares(got: Array, expected: Array, allowed: Array) -> Array:
    with np.errstate(all="ignore"):
        low, high = (narrow(end, got.dtype).astype(float) for end in (expected - allowed, expected + allowed))
        value = got.astype(float)
        inside = ((low <= value) & (value <= high)) | (np.isnan(value) & np.isnan(expected))
        inside &= (allowed > 0) | (expected != 0) | (np.signbit(value) == np.signbit(expected))
        share = np.abs(value - expected) / np.where(value > expected, high - expected, expected - low)
        share = np.where(np.isnan(share), 0.0, share)
        return np.where(inside, np.minimum(share, 1.0), np.where(share > 1.0, share, np.inf))


@np.errstate(all="ignore")
def judge(path: str, got: Array, bound: Bound, *, nan_parts: bool = False) -> OutputReport:
    """Hold one output against its bound: same shape and dtype, every element within its distance.

    Of a complex NaN, which part is NaN depends on the order of operations; ``nan_parts`` holds it to the reference.
    """
    if got.shape != bound.expected.shape or got.dtype != bound.dtype:
        said = f"got {got.dtype.name}{list(got.shape)}, expected {bound.dtype.name}{list(bound.expected.shape)}"
        return OutputReport(path, got.dtype.name, np.inf, np.inf, (), 0, said, got.shape)
    share = shares(got, bound)
    if bound.dtype.kind == "c" and not nan_parts:
        share = np.where(np.isnan(got) & np.isnan(bound.expected), 0.0, share)
    held = narrow(bound.expected, bound.dtype)
    distance = _distance(got, bound, held)
    parts = _classes(got, held, bound, share, distance)
    judged = np.where(bound.unstable, 0.0, share)
    unstable = int(np.count_nonzero(bound.unstable))
    if not judged.size:
        return OutputReport(path, got.dtype.name, 0.0, 0.0, (), 0, shape=got.shape)
    index, worst = _largest(judged)
    difference = float(np.max(np.where(bound.unstable, 0.0, distance)))
    return OutputReport(
        path, got.dtype.name, difference, worst, index, unstable, "", got.shape, parts, _map(judged, got.shape)
    )


def _distance(got: Array, bound: Bound, held: Array) -> Array:
    """|got - expected|, where expected is what the dtype can hold of it if that is not finite."""
    if not unit(bound.dtype):
        return np.abs(got.astype(float) - held.astype(float))
    wide = bound.expected.dtype
    expected = np.where(np.isfinite(held), bound.expected, held.astype(wide))
    value = got.astype(wide)
    same = (value == expected) | (np.isnan(value) & np.isnan(expected))
    distance = np.abs(value - expected)
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _class_of(held: Array, bound: Bound) -> Array:
    """Per element the number of its class in `CLASSES`."""
    if not unit(bound.dtype):
        classes = np.full(held.shape, CLASSES.index("exact"), np.int8)
    else:
        size = np.abs(held.astype(bound.expected.dtype))
        classes = np.zeros(held.shape, np.int8)
        for name, found in (
            ("zero", size == 0),
            ("subnormal", (size > 0) & (size < tiny(bound.dtype))),
            ("infinite", np.isinf(size)),
            ("nan", np.isnan(size)),
        ):
            classes[found] = CLASSES.index(name)
    classes[bound.unstable] = CLASSES.index("decided by rounding")
    return classes


def _classes(got: Array, held: Array, bound: Bound, share: Array, distance: Array) -> tuple[ClassReport, ...]:
    classes, found = _class_of(held, bound), []
    for number, name in enumerate(CLASSES):
        of_class = classes == number
        elements = int(np.count_nonzero(of_class))
        if not elements:
            continue
        difference = float(np.max(distance, where=of_class, initial=0.0))
        index, worst = _largest(np.where(of_class, share, -1.0))
        if worst == 0:
            index, _ = _largest(np.where(of_class, distance, -1.0))
        values = got[index].astype(bound.expected.dtype).item(), held[index].astype(bound.expected.dtype).item()
        found.append(ClassReport(name, elements, difference, worst, index, *values))
    return tuple(found)


def _largest(values: Array) -> tuple[tuple[int, ...], float]:
    """Index and value of the largest element."""
    place = int(np.argmax(values))
    return tuple(int(i) for i in np.unravel_index(place, values.shape)), float(values.reshape(-1)[place])


def _map(share: Array, shape: tuple[int, ...]) -> Array:
    """The largest share per cell, float32[rows, columns], the last axis across and all others down."""
    columns = shape[-1] if shape else 1
    grid = share.reshape(math.prod(shape[:-1]), columns)
    for axis in (0, 1):
        cells = min(grid.shape[axis], MAP_CELLS)
        starts = np.arange(cells) * grid.shape[axis] // cells
        grid = np.maximum.reduceat(grid, starts, axis=axis)
    return grid.astype(np.float32)
