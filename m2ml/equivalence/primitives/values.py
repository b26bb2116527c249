"""What the generators of primitive cases draw: shapes, dtypes and arrays full of awkward values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Array = np.ndarray[Any, Any]

FLOATS = ("float32", "bfloat16", "float16")
SIGNED = ("int8", "int16", "int32")
UNSIGNED = ("uint8", "uint16", "uint32")
INTEGERS = SIGNED + UNSIGNED
COMPLEX = ("complex64",)
BOOL = ("bool",)
REAL = FLOATS + INTEGERS
NUMBERS = REAL + COMPLEX
EVERY = NUMBERS + BOOL

#: Few, so that XLA compiles each primitive a few times only: 0-d, empty, one, primes, and up to four axes. Large ones
#: hold many special values, so they come more often.
SHAPES = (*((257,), (17, 5), (7, 7)) * 3, (2, 1, 3, 5), (1, 7, 1), (7,), (2, 0, 3), (0,), ())
#: Half of the values of an array of up to this many elements are special.
_SMALL = 100

SIZES = (0, 1, 2, 3, 5, 7)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name) if name == "bfloat16" else name)


def shapes(draw: Draw) -> tuple[int, ...]:
    return tuple(one_of(draw, *SHAPES))


def shape_of(draw: Draw, least: int = 0, most: int = 4, sizes: Sequence[int] = SIZES) -> tuple[int, ...]:
    """Any shape of ``least`` to ``most`` axes.

    Often the last two, or all, are equally long: a mix-up of axes then shows in no shape. Sometimes, where
    ``sizes`` has 0, one axis is empty: more often would leave little to compare.
    """
    rank = one_of(draw, *range(least, most + 1))
    lengths = sorted((n for n in sizes if n), key=lambda n: n == 1)  # the first ones come more often
    shape = [one_of(draw, *lengths) for _ in range(rank)]
    if rank > 1 and coin(draw):
        equal = rank if coin(draw) else 2
        shape[-equal:] = [shape[-1]] * equal
    if rank and 0 in sizes and one_of(draw, *range(10)) == 9:
        shape[draw(st.integers(0, rank - 1))] = 0
    return tuple(shape)


#: Where hypothesis meets no literal: into a range that holds integers of the sources of this project, or of others that
#: are imported, it draws those more often, so that a case would change with a line that has nothing to do with it.
_FAR = 7 << 40

#: From so many numbers hypothesis draws all alike; of a few it favours those that it has not had.
_MANY = 2**20


def number(draw: Draw, count: int = _MANY) -> int:
    """One of ``count`` numbers from 0 on, each as often as another; 0 is the simplest."""
    return draw(st.integers(_FAR, _FAR + count - 1)) - _FAR


def one_of(draw: Draw, *options: Any) -> Any:
    """One of these, each as often as another; the first one is the simplest."""
    return options[number(draw) % len(options)]


def coin(draw: Draw) -> bool:
    return bool(one_of(draw, False, True))


def specials(dtype: np.dtype[Any], finite: bool, extreme: bool) -> Array:
    """The values at which implementations go wrong."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        return np.array([0, 1, 2, ends.max, ends.max - 1, ends.min, ends.min + 1], dtype)
    info: Any = ml_dtypes.finfo(dtype)
    values = [*(0.0, -0.0) * 3, 1.0, -1.0, 0.5, 2.0, float(info.eps)]
    if extreme:
        tiny, largest, subnormal = float(info.tiny), float(info.max), float(info.smallest_subnormal)
        values += [tiny, -tiny, largest, -largest, tiny / 2, -tiny / 4, subnormal]
    return np.array(values if finite else [*values, *(np.nan, np.inf, -np.inf) * 2], np.float64).astype(dtype)


def dtype_among(draw: Draw, *names: str) -> str:
    """One of these dtypes: often float32, where most can go wrong, or integers too large for it."""
    floats = [name for name in ("float32", "float32", *FLOATS) if name in names]
    words = [name for name in ("int32", "uint32") if name in names]
    return one_of(draw, *one_of(draw, *(group for group in (floats, floats, words, names) if group)))


def array(
    draw: Draw,
    shape: Sequence[int],
    dtype: str,
    *,
    finite: bool = False,
    extreme: bool = True,
    scales: Sequence[float] = (1.0, 1e-3, 20.0, 1e4),
    low: float | None = None,
    high: float | None = None,
    copy: int = 0,
) -> Array:
    """An array of which a quarter, or half where it is small, is special; in ``[low, high]`` when those are given.

    Arrays of one case that have different ``copy`` are different even where hypothesis draws them alike.
    ``finite`` leaves out NaN, infinities and the largest numbers. Not ``extreme`` leaves out the largest and the
    smallest: whether their sums and products overflow or vanish on the way depends on the order of the terms.
    """
    rng = np.random.default_rng((number(draw), copy))
    kind = dtype_of(dtype)
    if kind.kind == "c":
        part = np.dtype(np.float32)
        parts = [array_from(rng, shape, part, finite, extreme and not finite, 1.0, low, high) for _ in range(2)]
        return np.ascontiguousarray(np.stack(parts, axis=-1)).view(kind)[..., 0]
    return array_from(rng, shape, kind, finite, extreme, one_of(draw, *scales), low, high)


def array_from(
    rng: np.random.Generator,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    finite: bool,
    extreme: bool,
    scale: float,
    low: float | None,
    high: float | None,
) -> Array:
    shape = tuple(shape)
    pool = specials(dtype, finite, extreme)
    if dtype.kind in "biu":
        plain = _integers(rng, shape, dtype)
    else:
        plain = (rng.standard_normal(shape) * scale).astype(dtype)
        if finite:
            pool = pool[np.abs(pool.astype(np.float64)) <= 2]
    if low is not None or high is not None:
        plain = _within(rng, shape, dtype, low, high)
        pool = pool[_inside(pool.astype(np.float64), low, high)]
    chosen = rng.choice(pool, shape) if pool.size else plain
    share = 0.25 if plain.size > _SMALL else 0.5
    return np.where(rng.random(shape) < share, chosen, plain).astype(dtype)


def near_ties(draw: Draw, shape: Sequence[int], dtype: str) -> Array:
    """Floats so close to each other that fewer bits of precision make them equal; other dtypes as `array` has them."""
    if dtype not in FLOATS or coin(draw):
        return array(draw, shape, dtype, finite=coin(draw))
    rng = np.random.default_rng(number(draw))
    steps = rng.integers(-9, 10, tuple(shape)) * float(ml_dtypes.finfo(dtype_of(dtype)).eps)
    return ((1 + steps) * one_of(draw, 1.0, -1e-3)).astype(dtype_of(dtype))


def either_nan(draw: Draw, x: Array) -> Array:
    """``x`` with about half of its NaN negative, for what goes by the order of the bits."""
    turned = np.random.default_rng(number(draw)).random(x.shape) < 0.5
    return np.where(turned & np.isnan(x.astype(np.float32)), -x, x) if x.dtype.name in FLOATS else x


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    near = rng.integers(max(info.min, -9), 10, shape)
    return np.where(rng.random(shape) < 0.5, near, rng.integers(info.min, int(info.max) + 1, shape)).astype(dtype)


def _within(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any], low: float | None, high: float | None
) -> Array:
    begin = -10.0 if low is None else low
    end = max(begin, 0.0) + 10.0 if high is None else high
    if dtype.kind in "iu":
        return rng.integers(int(begin), int(end) + 1, shape).astype(dtype)
    return np.clip(rng.uniform(begin, end, shape), begin, end).astype(dtype)


def _inside(pool: Array, low: float | None, high: float | None) -> Array:
    inside = np.ones(pool.shape, bool)
    if low is not None:
        inside &= ~(pool < low)
    if high is not None:
        inside &= ~(pool > high)
    return inside
