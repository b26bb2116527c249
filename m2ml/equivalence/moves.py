"""Move arrays by random shares of a scale, block by block: a block stays in the processor's cache through all passes.

A perturbed run moves every number that a program computes, so this is most of what a bound costs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
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


def held(output: Array, dtype: Any) -> Array:
    """A wide array as ``dtype`` holds its numbers."""
    if output.size <= BLOCK:
        return widen(narrow(output, dtype))
    flat, result = output.reshape(-1), np.empty(output.size, output.dtype)
    for block in blocks(flat.size):
        result[block] = narrow(flat[block], dtype)
    return result.reshape(output.shape)


def move(output: Array, scale: Array | None, dtype: Any, generator: np.random.Generator, u: float = 1.0) -> Array:
    """``output`` moved by half of ``u * scale`` to all of it, up or down, rounded to ``dtype``; infinities stay.

    ``output`` is a wide array; so is the result. Without ``scale`` it is the size of ``output`` itself.
    """
    if output.size <= BLOCK:
        directions = _draw(output.size, generator).reshape(output.shape)
        return _moved(output, output if scale is None else scale, u, directions, dtype)
    flat, result = output.reshape(-1), np.empty(output.size, output.dtype)
    scales = flat if scale is None else np.broadcast_to(scale, output.shape).reshape(-1)
    for block in blocks(flat.size):
        directions = _draw(flat[block].size, generator)
        result[block] = _moved(flat[block], scales[block], u, directions, dtype)
    return result.reshape(output.shape)


def _draw(size: int, generator: np.random.Generator) -> Array:
    """At most `BLOCK` random directions."""
    first = int(generator.integers(_DRAWN - BLOCK))
    return _directions()[first : first + size]


def _moved(output: Array, scale: Array, u: float, directions: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        shift = directions * u if u != 1.0 else directions
        moved = shift * scale + output
        if not np.isfinite(moved.sum()):  # cheaper than looking at each, and never finite where one is not
            moved = np.where(np.isfinite(output), moved, output)
        if np.dtype(dtype) == np.float32:  # what narrow and widen do, without their other cases
            return np.asarray(moved.astype(np.float32).astype(np.float64))
        return widen(narrow(moved, dtype))
