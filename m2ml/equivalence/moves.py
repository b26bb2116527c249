"""Move arrays by random shares of a scale, block by block: a block stays in the processor's cache through all passes.

A perturbed run moves every number that a program computes, so this is most of what a bound costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from m2ml.precision import narrow, widen

Array = np.ndarray[Any, Any]

#: Elements handled at once; four float64 blocks of it fit into a second-level cache of 1 MiB.
BLOCK = 1 << 15

#: Numbers drawn once; a block takes as many of them as it needs from a random place.
_DRAWN = 1 << 20


def blocks(size: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` elements that cover ``size``."""
    for begin in range(0, size, BLOCK):
        yield slice(begin, begin + BLOCK)


@functools.cache
def _directions() -> Array:
    """Numbers of either sign with sizes between 1/2 and 1."""
    draw = np.random.default_rng(0).random(_DRAWN)
    return np.where(draw < 0.5, draw - 1, draw)


@functools.cache
def _factors(u: float) -> Array:
    """One and half of ``u`` to all of it, more or less."""
    return 1.0 + u * _directions()


def held(output: Array, dtype: Any) -> Array:
    """A wide array as ``dtype`` holds its numbers."""
    return _by_block(output, lambda part, _: _held(part, dtype))


def scaled(output: Array, dtype: Any, generator: np.random.Generator, u: float) -> Array:
    """``output`` moved by half of ``u`` times its size to all of it, up or down, rounded to ``dtype``."""
    factors = _factors(u)
    return _by_block(output, lambda part, _: _held(part * _draw(factors, part, generator), dtype))


def moved(output: Array, scale: Array, dtype: Any, generator: np.random.Generator) -> Array:
    """``output`` moved by half of ``scale`` to all of it, up or down, rounded to ``dtype``; ``scale`` is finite.

    Both parts of a complex number are moved.
    """
    scales = np.broadcast_to(scale, output.shape).reshape(-1) if output.size > BLOCK else scale

    def move(part: Array, block: slice | None) -> Array:
        size = scales if block is None else scales[block]
        shift = _draw(_directions(), part, generator) * size
        if part.dtype.kind == "c":
            shift = shift + 1j * (_draw(_directions(), part, generator) * size)
        return _held(shift + part, dtype)

    return _by_block(output, move)


def _by_block(output: Array, change: Callable[[Array, slice | None], Array]) -> Array:
    """``change`` of the whole array, or of one block of it after the other."""
    if output.size <= BLOCK:
        return np.asarray(change(output, None))
    flat, result = output.reshape(-1), np.empty(output.size, output.dtype)
    for block in blocks(flat.size):
        result[block] = change(flat[block], block)
    return result.reshape(output.shape)


def _draw(table: Array, part: Array, generator: np.random.Generator) -> Array:
    """As many numbers of a table as a part has, at most `BLOCK`, in its shape."""
    first = int(generator.random() * (_DRAWN - BLOCK))
    return table[first : first + part.size].reshape(part.shape)


def _held(x: Array, dtype: Any) -> Array:
    if dtype == np.float32:  # what narrow and widen do, without their other cases
        return x.astype(np.float32).astype(np.float64)
    return widen(narrow(x, dtype))
