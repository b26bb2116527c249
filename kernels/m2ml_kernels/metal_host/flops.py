"""Floating operations of a launch: how often each block of a kernel's code ran, times what stands in the block.

The blocks are those that the compiler marks for coverage; what stands in them is read from the disassembly.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^ *([0-9a-f]+):\t(?:[0-9a-f]{2,8} )*[ \t]*(\S+)?[ \t]*(.*)$")
_MARK = "__sanitizer_cov_trace_pc"
# Of x86-64: scalar, and packed with as many lanes as a register has; one of a fused product and sum are two.
_X86 = re.compile(r"v?(add|sub|mul|div|min|max|sqrt|rcp|rsqrt|fn?m(?:add|sub)\d+)(ss|sd|ps|pd)")
_ARM = re.compile(r"(fadd|fsub|fmul|fnmul|fdiv|fsqrt|fminn?m?|fmaxn?m?|fn?madd|fn?msub|fmla|fmls)")
# Calls where the processor's instruction is not taken, and how many operations each is.
_ARITHMETIC = {"fmaf": 2, "fma": 2, "fminf": 1, "fmaxf": 1, "sqrtf": 1, "sqrt": 1}
_FUNCTIONS = re.compile(
    r"(?:sincos|exp|exp2|exp10|expm1|log|log2|log10|log1p|sin|cos|tan|tanh|sinh|cosh|asin|acos|atan|atan2|asinh|acosh|atanh|pow|fmod"
    r"|erf|erfc)f?"
)


@dataclass(frozen=True)
class Arithmetic:
    """``flops``: sums, products, quotients, roots, minima and maxima; ``functions``: calls of exp, log and such."""

    flops: int
    functions: int


def arithmetic_of(path: Path, blocks: Mapping[int, int]) -> Arithmetic | None:
    """What a launch computed, from the object and the times each mark in it was passed; None where no tool reads it."""
    found = _marked(str(path))
    if not found:
        return None
    flops = sum(blocks.get(mark, 0) * inside[0] for mark, inside in found.items())
    functions = sum(blocks.get(mark, 0) * inside[1] for mark, inside in found.items())
    return Arithmetic(flops, functions)


@functools.lru_cache(maxsize=256)
def _marked(path: str) -> dict[int, tuple[int, int]]:
    """Floating operations and calls of functions behind each mark, which is named by where its call returns to."""
    command = ["objdump", "-d", "--no-show-raw-insn", "-w", path]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    out: dict[int, tuple[int, int]] = {}
    mark, passed = 0, False
    for line in said.splitlines():
        if line.endswith(">:"):  # another function, whose code before its first mark is of no block
            mark, passed = 0, False
        if not (read := _LINE.match(line)):
            continue
        address, operation, operands = int(read[1], 16), read[2] or "", read[3]
        if passed:
            mark, passed = address, False
            out[mark] = (0, 0)
        if _MARK in operands:
            passed = True
        elif mark:
            flops, functions = out[mark]
            out[mark] = flops + _operations(operation, operands), functions + _function(operation, operands)
    return out


def _operations(operation: str, operands: str) -> int:
    if found := _X86.fullmatch(operation):
        wide = 1 if found[2] in ("ss", "sd") else (8 if "%ymm" in operands else 4) // (2 if found[2] == "pd" else 1)
        return wide * (2 if found[1].startswith("f") else 1)
    if _ARM.fullmatch(operation):
        return 2 if re.fullmatch(r"fn?m(?:add|sub|la|ls)", operation) else 1
    return _ARITHMETIC.get(_called(operation, operands), 0)


def _function(operation: str, operands: str) -> int:
    name = _called(operation, operands)
    return 0 if not _FUNCTIONS.fullmatch(name) else 2 if name.startswith("sincos") else 1


def _called(operation: str, operands: str) -> str:
    """The name of the function that an instruction calls."""
    found = re.search(r"<(\w+)(?:@plt)?>", operands) if operation.startswith(("call", "bl")) else None
    return found[1] if found else ""
