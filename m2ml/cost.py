"""What a program costs: floating-point operations, bytes that must move, peak of live bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml import compat
from m2ml.interpreter import Code, Equation, equation_bodies


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one run.

    ``flops``: floating-point operations (a multiply-add counts two, a transcendental function one).
    ``bytes``: bytes of inputs, constants and outputs: what any engine has to move.
    ``peak_bytes``: most bytes alive at once when equations run in order and arrays die after their last use.
    ``bounded``: False when a ``while`` loop of unknown length was counted once.
    """

    flops: int
    bytes: int
    peak_bytes: int
    bounded: bool = True


def nbytes(aval: Any) -> int:
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _total(avals: Iterable[Any]) -> int:
    return sum(map(nbytes, avals))


def _dot_flops(equation: Equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(equation.shape) * math.prod(equation.inputs[0].shape[i] for i in contracted)


def _conv_flops(equation: Equation) -> int:
    kernel, numbers = equation.inputs[1].shape, equation.params["dimension_numbers"]
    per_output = math.prod(kernel) // max(kernel[numbers.rhs_spec[0]], 1)
    return 2 * math.prod(equation.shape) * per_output // equation.params["batch_group_count"]


#: Primitives that only move, compare or make data.
_FREE = frozenset(
    """and argmax argmin bitcast_convert_type broadcast_in_dim clamp concatenate convert_element_type copy
    dynamic_slice dynamic_update_slice eq expand_dims gather ge gt iota is_finite le lt max min ne not
    optimization_barrier or pad reduce_and reduce_max reduce_min reduce_or reshape rev scatter select_n
    shift_left shift_right_arithmetic shift_right_logical slice sort split squeeze top_k transpose xor""".split()
)


def equation_flops(equation: Equation) -> int:
    """Floating-point operations of one equation, its bodies included."""
    if equation.name == "dot_general":
        return _dot_flops(equation)
    if equation.name == "conv_general_dilated":
        return _conv_flops(equation)
    if equation.name == "cond":
        return max(cost_of(branch).flops for branch in equation.params["branches"])
    if equation.name in ("scan", "while"):
        return equation.params.get("length", 1) * sum(cost_of(body).flops for body in equation_bodies(equation))
    floating = [a for a in (*equation.inputs, *equation.outputs) if compat.is_inexact(a.dtype)]
    if equation.name in _FREE or not floating:
        return 0
    return max(math.prod(a.shape) for a in floating)


def peak_bytes(
    code: Code, size: Callable[[Any], int] = nbytes, scratch: Callable[[Equation], int] = lambda equation: 0
) -> int:
    """Most bytes alive at once when ``code`` runs in order and arrays die after their last use.

    ``size`` says what an array of a type takes, ``scratch`` what an equation takes beside its results while it runs.
    """
    fixed = {*code.inputs, *code.constants}
    live = peak = sum(size(code.avals[slot]) for slot in fixed)
    for step in code.steps:
        inner = max((peak_bytes(body, size, scratch) for body in equation_bodies(step.equation)), default=0)
        live += sum(map(size, step.equation.outputs))
        peak = max(peak, live + inner + scratch(step.equation))
        live -= sum(size(code.avals[slot]) for slot in step.last if slot not in fixed)
    return peak


def cost_of(code: Code) -> Cost:
    """Cost of running ``code`` once."""
    flops, bounded = 0, True
    for step in code.steps:
        flops += equation_flops(step.equation)
        bounded &= step.equation.name != "while" and all(cost_of(b).bounded for b in equation_bodies(step.equation))
    moved = _total(code.in_avals) + _total(code.out_avals) + sum(v.nbytes for v in code.constants.values())
    return Cost(flops, moved, peak_bytes(code), bounded)
