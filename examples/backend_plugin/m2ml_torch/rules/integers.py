"""Bits. Shifts by the width or more give what shifting one bit at a time would."""

from __future__ import annotations

import torch

import m2ml
from m2ml_torch.rules.table import counts, moves

for _name, _operator in {"and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}.items():
    moves(_name)(lambda equation, x, y, operator=_operator: operator(x, y))


@moves("not")
def not_(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_not(x)


def _width(equation: m2ml.Equation) -> int:
    return 8 * int(equation.inputs[0].dtype.itemsize)


def _counts(equation: m2ml.Equation, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the shift count, read as unsigned, lies below the width, and a count that does."""
    count = y & ((1 << _width(equation)) - 1)
    inside = count < _width(equation)
    return inside, torch.where(inside, count, 0)


@counts("shift_left")
def shift_left(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    inside, count = _counts(equation, y)
    return torch.where(inside, x << count, 0)


@counts("shift_right_logical")
def shift_right_logical(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    inside, count = _counts(equation, y)
    return torch.where(inside, (x & ((1 << _width(equation)) - 1)) >> count, 0)


@counts("shift_right_arithmetic")
def shift_right_arithmetic(equation: m2ml.Equation, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The top bit is repeated, that of an unsigned number too."""
    inside, count = _counts(equation, y)
    top = 1 << (_width(equation) - 1)
    extended = ((x & (2 * top - 1)) ^ top) - top
    return extended >> torch.where(inside, count, _width(equation) - 1)


def _bits(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """The bits of each element, most significant first, along a new last axis."""
    return (x[..., None] >> torch.arange(_width(equation) - 1, -1, -1, device=x.device)) & 1


@counts("population_count")
def population_count(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return _bits(equation, x).sum(-1)


@counts("clz")
def clz(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    """How many zeros precede the first one."""
    return (_bits(equation, x).cumsum(-1) == 0).sum(-1)
