"""The table of rules and the two kinds that most rules are of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

import m2ml
from m2ml_torch.arrays import HALVES, same_bits, signed, torch_dtype, wide

#: Primitive name -> ``rule(equation, *tensors)``.
rules = m2ml.Rules()

Rule = TypeVar("Rule", bound=Callable[..., Any])


def out_dtype(equation: m2ml.Equation, index: int = 0) -> torch.dtype:
    return torch_dtype(equation.outputs[index].dtype)


def moves(*names: str) -> Callable[[Rule], Rule]:
    """A rule that only moves values: unsigned integers go through it as the signed ones with the same bits."""

    def register(rule: Rule) -> Rule:
        @rules.define(*names)
        @functools.wraps(rule)
        def moved(equation: m2ml.Equation, *tensors: torch.Tensor) -> Any:
            outs = rule(equation, *map(signed, tensors))
            if isinstance(outs, torch.Tensor):
                return same_bits(outs, out_dtype(equation))
            return [same_bits(y, out_dtype(equation, i)) for i, y in enumerate(outs)]

        return rule

    return register


def counts(*names: str) -> Callable[[Rule], Rule]:
    """A rule that computes: integers go through it as int64, and the result is cut to the declared dtype."""

    def register(rule: Rule) -> Rule:
        @rules.define(*names)
        @functools.wraps(rule)
        def counted(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = rule(equation, *map(wide, tensors))
            return result.to(out_dtype(equation))

        return rule

    return register


def function(name: str, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A function of one floating tensor, in float32 for the half dtypes."""

    @rules.define(name)
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        return compute(x.float() if x.dtype in HALVES else x).to(out_dtype(equation))
