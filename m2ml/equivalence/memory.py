"""What `compare` needs of the machine's memory, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ml.control import CONTROL_FLOW
from m2ml.cost import nbytes, peak_bytes
from m2ml.equivalence.rounding import EXACT, ROUNDED, SUMS
from m2ml.equivalence.scales import REMEMBERED
from m2ml.errors import OutOfMemory
from m2ml.interpreter import Code, Equation
from m2ml.precision import wide
from m2ml.program import Program

#: What an engine takes to compile a program, and what an allocator loses between arrays: benchmarks/bench_compare.py
#: measures both on train steps.
COMPILING, FRAGMENTS = 64_000_000, 1.1


@dataclass(frozen=True)
class Need:
    """Bytes that a comparison takes at its worst moment beside its arguments: the largest of its three stages.

    ``engine``: a backend's run, its copy of the arguments included. ``reference``: a perturbed run in float64 beside
    the exact results and their spread. ``judging``: bounds of all outputs. ``results`` of every backend are kept
    through all of them.
    """

    engine: int
    reference: int
    judging: int
    results: int

    @property
    def bytes(self) -> int:
        arrays = max(self.engine, self.reference, self.judging) + self.results
        return COMPILING + int(FRAGMENTS * arrays)


def _wide_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * wide(aval.dtype).itemsize


def _scratch(equation: Equation) -> int:
    """What moving an equation's result takes: squares of a sum's operands, or values of a function at moved arguments.

    The counts are those of arrays alive at once in `error_scale` and `Perturbation`; a test holds them to the truth.
    """
    inputs, outputs = sum(map(_wide_bytes, equation.inputs)), sum(map(_wide_bytes, equation.outputs))
    if equation.name in SUMS:
        return 2 * inputs + 6 * outputs
    return 4 * outputs if equation.name in EXACT | ROUNDED else inputs + 12 * outputs


def _scales(code: Code) -> int:
    """The error scales that are kept from run to run."""
    kept = (e for e in code.equations() if e.name not in EXACT | ROUNDED | CONTROL_FLOW)
    return sum(8 * math.prod(aval.shape) for equation in kept for aval in equation.outputs)


def needed(program: Program, backends: int) -> Need:
    """What comparing ``program`` on so many backends takes; nothing is run."""
    code = program.code
    outputs = [math.prod(aval.shape) for aval in code.out_avals]
    native = sum(map(nbytes, code.out_avals))
    exact = sum(map(_wide_bytes, code.out_avals))
    spread = 9 * sum(outputs)  # float64, and one byte that says whether rounding decides
    largest = 8 * max(outputs, default=0)
    reference = peak_bytes(code, _wide_bytes, _scratch) + exact + spread + min(REMEMBERED, _scales(code))
    judging = exact + spread + 8 * sum(outputs) + 8 * largest
    return Need(peak_bytes(code) + native, reference, judging, backends * native)


def available() -> int:
    """Bytes that can be had without swapping: of the machine, or of the control group that limits this process."""
    import psutil

    free: int = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def refuse_to_swap(program: Program, backends: Sequence[str]) -> None:
    """Raise `m2ml.OutOfMemory` when the comparison needs more memory than is free."""
    need, free = needed(program, len(backends)), available()
    if need.bytes > free:
        raise OutOfMemory(
            f"comparing {program.name} on {', '.join(backends)} needs about {_size(need.bytes)} of memory "
            f"(the float64 reference {_size(need.reference)}, results {_size(need.results)}) "
            f"and {_size(free)} are free; use a smaller batch or model, or name fewer backends"
        )


def _size(count: int) -> str:
    """``1.23 GB``."""
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if count >= s or s == 1)
    return f"{count / scale:.3g} {unit}"
