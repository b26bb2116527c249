"""How far a correct engine may be from the exact result: bounds that come from the arithmetic.

`error_scale` says how large the rounding error of one equation is, per element, in a correct implementation.
The bound of a whole program is measured, not derived: the reference runs it again with every equation's result
moved by its error scale in a random direction; the spread of the results is the program's own conditioning
(Monte Carlo arithmetic; D. S. Parker, 1997).

Where rounding or flushing can change an element to anything (a NaN, another integer), it is marked, not judged; so is
what the bits of a NaN decide, or the sign of a zero that IEEE 754 leaves open. What a bound of a program does not see:
the sign of a zero, and one wrong rounding; bounds of single equations see both.

The two errors, on a corpus of generated cases, their compositions, random programs of primitives and ops, and
optimizers, with 95% limits (``benchmarks/study_bounds.py``). Of 31,000 programs, on MLX and on XLA's CPU each, 12 were
outside on one or both, over eight versions of the bounds, and XLA refused 2 that hold mulhi beside others; the reasons
are mended since, and each has a test (``tests/conformance/test_found_by_fuzzing.py``). This version has met 2,250
programs (seeds 900,000 to 907,000 by the thousand, and 920,000), none outside (0% to 0.16%). Of 204 planted faults that
change what a program gives, 202 were caught in at most 12 programs (96.5% to 99.9%); six more change signs of zeros
only. The cases of single equations catch 1,430 of 1,443 wrong rules in 40 of MLX's 144 (98.5% to 99.5%;
``benchmarks/study_mutants.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.equivalence.moves import blocks
from m2ml.equivalence.rounding import tiny, unit

Array = np.ndarray[Any, Any]

#: Perturbed runs of the reference that measure a program's spread.
RUNS = 4

#: A result may be this many times the measured spread away: the spread of a few runs underestimates the worst case.
FACTOR = 8.0

#: Elements whose median spread stands for that of an output; a median needs no more.
SAMPLE = 1 << 16


@dataclass(frozen=True)
class Bound:
    """What a correct engine may return for one output: ``expected`` in float64 and the distance allowed per element.

    ``unstable`` marks elements that rounding alone can change arbitrarily: a NaN in one run and not in another, or
    an integer that differs between runs. They are reported, not judged.
    """

    expected: Array
    allowed: Array
    unstable: Array
    dtype: np.dtype[Any]


def bound_of(dtype: Any, exact: Array, perturbed: Iterable[Array]) -> Bound:
    """The bound of one output from its exact value and its values in perturbed runs."""
    spread = Spread(dtype, exact)
    for run in perturbed:
        spread.add(run)
    return spread.bound()


class Spread:
    """How far perturbed runs move one output from its exact value; a run is let go of once it has been added."""

    def __init__(self, dtype: Any, exact: Array) -> None:
        self.dtype, self.exact = np.dtype(dtype), exact
        self.unstable = np.zeros(exact.shape, bool)
        self.spread = np.zeros(exact.shape) if unit(dtype) else None

    def add(self, run: Array) -> None:
        """Take one more perturbed run into account."""
        if self.spread is None:
            self.unstable |= run != self.exact
            return
        flat = [x.reshape(-1) for x in (run, self.exact, self.unstable, self.spread)]
        for block in blocks(self.exact.size):
            self._add(*(x[block] for x in flat))

    @staticmethod
    def _add(run: Array, exact: Array, unstable: Array, spread: Array) -> None:
        with np.errstate(all="ignore"):
            distance = np.abs(run - exact)
            if not np.isfinite(distance).all():
                same = (run == exact) | (np.isnan(run) & np.isnan(exact))
                unstable |= ~same & ~np.isfinite(distance)
                distance = np.where(same | ~np.isfinite(distance), 0.0, distance)
        np.maximum(spread, distance, out=spread)

    def bound(self) -> Bound:
        """The bound by the runs added so far."""
        if self.spread is None:
            return Bound(self.exact, np.zeros(self.exact.shape), self.unstable, self.dtype)
        allowed, typical = np.empty(self.exact.shape), self._typical()
        flat = [x.reshape(-1) for x in (self.exact, self.spread, allowed)]
        for block in blocks(self.exact.size):
            exact, spread, result = (x[block] for x in flat)
            size = np.where(np.isfinite(exact), np.abs(exact), 0.0)
            result[:] = FACTOR * np.maximum(spread, typical * size) + 2 * unit(self.dtype) * size + 2 * tiny(self.dtype)
        return Bound(self.exact, allowed, self.unstable, self.dtype)

    def _typical(self) -> float:
        """The median spread in units of the value, of at most `SAMPLE` elements evenly spaced."""
        assert self.spread is not None
        every = slice(None, None, max(self.exact.size // SAMPLE, 1))
        exact = self.exact.reshape(-1)[every]
        with np.errstate(all="ignore"):
            relative = self.spread.reshape(-1)[every] / np.abs(exact)
        relative = relative[np.isfinite(relative) & np.isfinite(exact)]
        return float(np.median(relative)) if relative.size else 0.0
