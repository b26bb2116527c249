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


def move(output: Array, scale: Array | float, dtype: Any, generator: np.random.Generator) -> Array:
    """``output`` moved by half of ``scale`` to all of it, up or down, rounded to ``dtype``; what is not finite stays.

    ``output`` is a wide array; so is the result.
    """
    if output.size <= BLOCK:
        draw = generator.random(output.shape, np.float32)
        return np.asarray(_moved(output, scale, np.where(draw < 0.5, draw - 1, draw), dtype))
    flat, result = output.reshape(-1), np.empty(output.size, output.dtype)
    scales = np.broadcast_to(scale, output.shape).reshape(-1)
    for block in blocks(flat.size):
        first = int(generator.integers(_DRAWN - BLOCK))
        directions = _directions()[first : first + flat[block].size]
        result[block] = _moved(flat[block], scales[block], directions, dtype)
    return result.reshape(output.shape)


def _moved(output: Array, scale: Array | float, directions: Array, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        moved = directions * scale
        moved = moved + output
        if not np.isfinite(moved).all():
            moved = np.where(np.isfinite(output), moved, output)
        return widen(narrow(moved, dtype))
