"""Random choices of data that are a pure function of (seed, step), the same on every machine and backend."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def raw(seed: int, stream: int, count: int) -> Array:
    """``count`` random uint64, a function of both numbers alone.

    Raw output of Philox4x64-10 (Salmon et al. 2011), which NumPy promises never to change, as it does not for
    the distributions drawn from it.
    """
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, stream: int, count: int) -> Array:
    """The numbers below ``count`` in random order."""
    order = np.argsort(raw(seed, stream, count), kind="stable")
    order.flags.writeable = False
    return order


def starts(seed: int, step: int, count: int, below: int) -> Array:
    """``count`` numbers below ``below``, drawn with replacement."""
    return (raw(seed, step, count) % np.uint64(below)).astype(np.int64)


def epoch_slice(seed: int, step: int, count: int, total: int) -> Array:
    """Indices of batch ``step``: each epoch visits ``total`` items in its own order, and drops an incomplete batch."""
    epoch, position = divmod(step, total // count)
    return permutation(seed, epoch, total)[position * count : (position + 1) * count]
