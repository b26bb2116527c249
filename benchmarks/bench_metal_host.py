"""The Metal host: seconds to compile MLX's own kernels and milliseconds to run them on inputs of a test's size.

Processor time, so that other work on the machine does not count; the goals are 1 s and 50 ms for each kernel.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kernels"))  # MLX's kernels and how each is launched

import mlx_shipped

COMPILE_GOAL, RUN_GOAL = 1.0, 0.050
KERNELS = (
    "softmax-float-513",
    "softmax-looped-half",
    "logsumexp-bfloat",
    "sdpa_vector-half-128",
    "qmv-half-4",
    "qmm-half-4",
    "gemm-ragged-float",
    "attention-half",
    "attention-ragged-bfloat",
)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(name: str, runs: int = 5) -> tuple[float, float]:
    """Processor seconds of compiling, and of one run (the median of several)."""
    case = mlx_shipped.configuration(name)
    begin = children_seconds() + time.process_time()
    kernel = case.compile()
    compiling = children_seconds() + time.process_time() - begin
    case.run(kernel)
    running = []
    for _ in range(runs):
        begin = time.process_time()
        case.run(kernel)
        running.append(time.process_time() - begin)
    return compiling, statistics.median(running)


def main() -> None:
    os.environ["M2ML_CACHE"] = tempfile.mkdtemp(prefix="m2ml-benchmark-")
    first = mlx_shipped.configuration("softmax-bfloat-100")
    first.run(first.compile())  # builds the runtime
    table = Table("kernel of MLX", "compile (goal 1 s)", "run (goal 50 ms)", "", title="Metal host")
    for name in KERNELS:
        compiling, running = measure(name)
        reached = compiling <= COMPILE_GOAL and running <= RUN_GOAL
        table.add_row(name, f"{compiling:.2f} s", f"{running * 1e3:.1f} ms", "reached" if reached else "MISSED")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
