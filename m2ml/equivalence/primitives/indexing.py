"""Cases of gathers, scatters and dynamic slices, with indices out of range in both directions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import (
    COMPLEX,
    EVERY,
    FLOATS,
    INTEGERS,
    Draw,
    array,
    coin,
    dtype_among,
    number,
    one_of,
    shape_of,
)

MODES = ("fill", "clip", "promise_in_bounds")


def _indices(draw: Draw, shape: tuple[int, ...], most: int) -> np.ndarray:
    rng = np.random.default_rng(number(draw))
    dtype = one_of(draw, "int32", "int32", "int8", "uint8", "uint32")
    low = 0 if dtype.startswith("u") else -3
    chosen = rng.integers(low, most + 3, shape)
    far = rng.choice([np.iinfo(dtype).max, np.iinfo(dtype).min], shape)
    return np.where(rng.random(shape) < 0.1, far, chosen).astype(dtype)


@covers("dynamic_slice", "dynamic_update_slice")
def dynamic_slices(draw: Draw, name: str) -> Case:
    x = array(draw, shape_of(draw, 0, 4, (0, 1, 3, 7)), dtype_among(draw, *EVERY))
    sizes = [draw(st.integers(min(1, n), n)) for n in x.shape]
    starts = [_indices(draw, (), n) for n in x.shape]
    starts = [s.astype(starts[0].dtype) for s in starts]
    if name == "dynamic_slice":
        return lambda x, *at: lax.dynamic_slice(x, at, sizes), [x, *starts]
    update = array(draw, sizes, x.dtype.name, copy=1)
    return lambda x, u, *at: lax.dynamic_update_slice(x, u, at), [x, update, *starts]


def _numbers(draw: Draw) -> tuple[Any, ...]:
    """Operand shape, index batch, window sizes and the roles of axes: collapsed, indexed, paired with a batch axis."""
    rank = one_of(draw, *range(1, 5))
    batch = list(shape_of(draw, 0, 2, (0, 1, 3, 7)))
    shape = list(shape_of(draw, rank, rank, (1, 2, 3, 5)))
    paired = [d for d in range(rank) if one_of(draw, *range(0, 4)) == 0][: len(batch)]
    partners = draw(st.permutations(range(len(batch))))[: len(paired)]
    for axis, partner in zip(paired, partners, strict=True):
        shape[axis] = batch[partner]
    sizes = [min(1, n) if d in paired else draw(st.integers(min(1, n), n)) for d, n in enumerate(shape)]
    collapsed = [d for d in range(rank) if d not in paired and sizes[d] == 1 and coin(draw)]
    indexed = [d for d in draw(st.permutations(range(rank))) if d not in paired and one_of(draw, *range(0, 4))]
    kept = [d for d in range(rank) if d not in paired and d not in collapsed]
    offsets = sorted(draw(st.permutations(range(len(kept) + len(batch))))[: len(kept)])
    return shape, batch, sizes, kept, offsets, tuple(collapsed), tuple(indexed), (tuple(paired), tuple(partners))


@covers("gather")
def gather(draw: Draw, name: str) -> Case:
    shape, batch, sizes, _, offsets, collapsed, indexed, (paired, partners) = _numbers(draw)
    numbers = lax.GatherDimensionNumbers(tuple(offsets), collapsed, indexed, paired, partners)
    mode, x = one_of(draw, *MODES), array(draw, shape, dtype_among(draw, *EVERY))
    at = _indices(draw, (*batch, len(indexed)), max(shape))
    if mode == "promise_in_bounds":
        at = _kept_inside(at, shape, sizes, indexed)
    return lambda x, i: lax.gather(x, i, numbers, sizes, mode=mode), [x, at]


def _kept_inside(at: np.ndarray, shape: list[int], sizes: list[int], indexed: tuple[int, ...]) -> np.ndarray:
    """A broken promise is undefined: there is nothing to compare."""
    last = np.array([shape[d] - sizes[d] for d in indexed], np.int64)
    return np.clip(at.astype(np.int64), 0, last).astype(at.dtype)


@functools.cache
def _clips_unsigned() -> bool:
    """False on jax 0.5, where a scatter in mode clip drops every update whose index is a uint32, even index 0."""
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    result = lax.scatter(np.zeros(2, np.float32), np.zeros(1, np.uint32), np.float32(1), numbers, mode="clip")
    return bool(result[0])


@covers("scatter", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max")
def scatter(draw: Draw, name: str) -> Case:
    shape, batch, sizes, kept, offsets, collapsed, indexed, (paired, partners) = _numbers(draw)
    if not indexed:  # XLA applies only one of several updates whose index vectors are empty
        batch = [n if axis in partners else min(n, 1) for axis, n in enumerate(batch)]
    numbers = lax.ScatterDimensionNumbers(tuple(offsets), collapsed, indexed, paired, partners)
    ordered = name in ("scatter_min", "scatter_max")
    dtype = dtype_among(draw, *FLOATS, *INTEGERS, *(() if ordered else COMPLEX))
    windows = iter(sizes[d] for d in kept)
    rest = iter(batch)
    updates = [next(windows if d in offsets else rest) for d in range(len(kept) + len(batch))]
    mode, function = one_of(draw, *MODES), public(name)
    at = _indices(draw, (*batch, len(indexed)), max(shape))
    if mode == "promise_in_bounds":
        at = _kept_inside(at, shape, sizes, indexed)
    if mode == "clip" and at.dtype == np.uint32 and not _clips_unsigned():
        at = at.astype(np.int32)
    finite = not ordered and name != "scatter"
    arrays = [array(draw, s, dtype, finite=finite, scales=(1.0, 20.0), copy=i) for i, s in enumerate((shape, updates))]
    unique = name == "scatter" and not _meets_once(at)
    if unique:
        arrays[1] = np.full(updates, arrays[1].reshape(-1)[0] if arrays[1].size else 0, arrays[1].dtype)
    return lambda x, i, u: function(x, i, u, numbers, mode=mode), [arrays[0], at, arrays[1]]


def _meets_once(at: np.ndarray) -> bool:
    """Which of two updates of one element stays is left open by XLA, so those are made equal."""
    return at.size <= at.shape[-1]
