"""Test inputs that several ops share: awkward sizes, scales and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Lengths of rows: one, small primes, around the widths of vectors and simdgroups, and beyond one of them.
SIZES = (1, 2, 3, 7, 8, 31, 33, 257)


def normal(shape: Sequence[int], seed: int = 0, scale: float = 1.0) -> Array:
    """Normal float32 numbers of deviation ``scale``."""
    return (np.random.default_rng(seed).standard_normal(tuple(shape)) * scale).astype(np.float32)


def rows() -> Iterator[tuple[str, Array]]:
    """Named arrays ``[*b, n]``: no leading axis, one, two, none of length; large, small, constant and uneven rows."""
    for n in SIZES:
        yield f"n={n}", normal((n,), n)
        yield f"3 rows, n={n}", normal((3, n), n)
    yield "two leading axes", normal((2, 3, 17), 5)
    yield "nine rows", normal((9, 5), 6)
    yield "no rows", normal((0, 7))
    yield "large", normal((2, 31), 1, 1e6)
    yield "small", normal((2, 31), 2, 1e-6)
    yield "constant", np.full((2, 9), 3.0, np.float32)
    yield "one large", np.concatenate([np.full((2, 1), 1e4, np.float32), normal((2, 15), 3)], -1)
    yield "wide range", (10.0 ** np.linspace(-6, 6, 33)).astype(np.float32)[None]


def gated_rows() -> Iterator[tuple[str, Array, Array]]:
    """Named pairs ``[*b, n]`` of gates and what they gate: gates far out in both tails, zeros, any number of axes."""
    for n in SIZES[1::2]:
        yield f"n={n}", normal((n,), n), normal((n,), 50 + n)
        yield f"3 rows, n={n}", normal((3, n), n, 3.0), normal((3, n), 60 + n)
    yield "two leading axes", normal((2, 3, 17), 5), normal((2, 3, 17), 6)
    yield "nine rows", normal((9, 5), 13), normal((9, 5), 14)
    yield "no rows", normal((0, 7)), normal((0, 7))
    yield "far out", np.linspace(-150, 150, 31, dtype=np.float32), normal((31,), 7)
    yield "left tail", np.linspace(-10, 0, 21, dtype=np.float32), normal((21,), 8)
    yield "small", normal((2, 9), 9, 1e-6), normal((2, 9), 10, 1e-6)
    yield "large", normal((2, 9), 11, 1e6), normal((2, 9), 12, 1e6)
