"""Ratios that hold on a noisy machine: two callables timed in turn, pair by pair, in one process."""

from __future__ import annotations

import ctypes.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """``ours`` and ``peer`` are median seconds per call; ``ratio`` is the median of the ratios of each pair."""

    what: str
    peer_name: str
    ours: float
    peer: float
    ratio: float
    limit: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "reached" if self.ratio <= self.limit else "MISSED"


def compare(
    what: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    peer_name: str,
    limit: float,
    calls: int = 1,
    pairs: int = 15,
    warmup: int = 2,
    rest: float = 0.0,
) -> Ratio:
    """Time ``calls`` calls of each in turn, ``pairs`` times, after a warm-up.

    Before each, ``rest`` seconds of sleep, in which threads of the other that wait in a busy loop give up.
    """
    for _ in range(warmup):
        ours()
        peer()
    mine, theirs = [], []
    for i in range(pairs):
        for fn, times in ((ours, mine), (peer, theirs)) if i % 2 else ((peer, theirs), (ours, mine)):
            time.sleep(rest)
            times.append(_seconds(fn, calls))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    quarter = len(ratios) // 4
    return Ratio(
        what,
        peer_name,
        statistics.median(mine),
        statistics.median(theirs),
        statistics.median(ratios),
        limit,
        ratios[quarter],
        ratios[-1 - quarter],
    )


#: What is timed: wall clock, or with the argument ``processor`` the processor time of all threads, which a busy
#: machine changes less.
clock = time.process_time if "processor" in sys.argv else time.perf_counter


def _seconds(fn: Callable[[], Any], calls: int) -> float:
    begin = clock()
    for _ in range(calls):
        fn()
    return (clock() - begin) / calls


def show(title: str, rows: Sequence[Ratio]) -> None:
    """Print the table of ratios; the last column says whether the stated limit was reached."""
    table = Table(title=title)
    for column in ("what", "peer", "m2ml", "peer's time", "ratio (middle half)", "limit", ""):
        table.add_column(column, overflow="fold")
    for r in rows:
        spread = f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})"
        table.add_row(r.what, r.peer_name, duration(r.ours), duration(r.peer), spread, f"{r.limit:g}", r.verdict)
    Console(width=140).print(table)


def duration(seconds: float) -> str:
    """``12.3 us``, ``4.56 ms`` or ``1.23 s``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def with_openblas() -> str:
    """Restart this program with OpenBLAS preloaded where MLX would use its reference BLAS; says which is in use."""
    library = ctypes.util.find_library("openblas")
    if sys.platform != "linux":
        return "MLX's own BLAS"
    if library is None:
        return "MLX's reference BLAS (install libopenblas0-pthread for figures that mean something)"
    if library not in os.environ.get("LD_PRELOAD", ""):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": library})
    return "OpenBLAS preloaded"


def with_huge_pages() -> None:
    """Restart with a C library that takes huge pages, for both sides: XLA's temporary arrays are new at every call, and
    a train step of 17 M parameters writes 63,000 pages, or 520 with huge ones. Other C libraries ignore it."""
    if "GLIBC_TUNABLES" not in os.environ:
        huge = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | huge)
