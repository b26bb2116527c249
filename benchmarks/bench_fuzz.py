"""How many random programs per second one core fuzzes on mlx, where the time goes, and what a verdict costs.

A program is drawn, traced, written down, run by the reference once exactly and a few times perturbed, run by MLX
(compilation off) and judged. The peer of the ratio is the plain run: the program traced already, evaluated once by the
reference. Seconds are those of this process's processor time, so that a busy machine does not count. On cpu XLA
compiles every program, which is nearly all of its time: its rate stands apart.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

#: Programs per second that the fuzzer must reach on mlx.
LEAST = 20.0


class Clock:
    """Processor seconds spent in some functions, by what they do; a function inside another one counts for itself."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside: list[float] = []

    def timed(self, what: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            begin = time.process_time()
            try:
                return fn(*args, **kwargs)
            finally:
                spent = time.process_time() - begin
                self.seconds[what] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return call


def fuzzed(backend: str, batches: int, size: int) -> tuple[Any, Counter[str], float, float]:
    """Counts, seconds by what was done, seconds in all, and seconds of plain reference runs of the same programs."""
    from m2ml.equivalence import hunt as module
    from m2ml.interpreter import Code
    from m2ml.plugins import registry
    from m2ml.program import Program

    clock, reference = Clock(), registry.get("reference")
    kept: list[tuple[Program, Any]] = []
    right = module.examined

    def examined(program: Program, host: Any, name: str) -> Any:
        clock.timed("flatten", lambda: isinstance(program.code, Code))()
        kept.append((program, host))
        return right(program, host, name)

    parts = {"run_program": backend, "measured_bounds": "reference", "judge_twice": "judge", "source_of": "write"}
    for name, what in parts.items():
        setattr(module, name, clock.timed(what, getattr(module, name)))
    module.examined = clock.timed("reports", examined)
    staged = module.Staged
    staged.trace = clock.timed("trace", staged.trace)
    hunt = module.Hunt(backend, seed=0, before=lambda source: None)
    begin = time.process_time()
    for number in range(batches):
        hunt.batch(number, size=size)
        module.forget_compiled()
    total = time.process_time() - begin
    clock.seconds["draw"] = total - sum(clock.seconds.values())
    begin = time.process_time()
    for program, host in kept:
        reference.run_exact(program, host)
    return hunt.counts, clock.seconds, total, time.process_time() - begin


def main() -> None:
    warnings.simplefilter("ignore")
    table = Table(title="Fuzzing, one process")
    for column in (
        "backend",
        "programs",
        "programs/s",
        "limit",
        "verdict / plain reference run",
        "milliseconds of one",
    ):
        table.add_column(column, overflow="fold")
    for backend, batches, size, least in (("mlx", 12, 50, LEAST), ("cpu", 2, 15, None)):
        fuzzed("mlx", 1, 10) if backend == "mlx" else None  # imports and first calls
        counts, seconds, total, plain = fuzzed(backend, batches, size)
        parts = ", ".join(f"{what} {1e3 * s / counts.programs:.1f}" for what, s in seconds.most_common())
        rate = counts.programs / total
        reached = "" if least is None else f"{least:g}: {'reached' if rate >= least else 'MISSED'}"
        table.add_row(backend, f"{counts.programs}", f"{rate:.1f}", reached, f"{total / plain:.1f}", parts)
    Console(width=140).print(table)


if __name__ == "__main__":
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    main()
