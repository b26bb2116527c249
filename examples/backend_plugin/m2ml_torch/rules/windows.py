"""Pooling and its derivative: a strided view holds the element that every window has at each offset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import m2ml
from m2ml_torch.arrays import HALVES
from m2ml_torch.rules.elementwise import infinity
from m2ml_torch.rules.structure import padded
from m2ml_torch.rules.table import counts, rules


def _padded(x: torch.Tensor, value: Any, params: Any) -> torch.Tensor:
    dilation = params.get("base_dilation") or (1,) * x.ndim
    config = [(low, high, d - 1) for (low, high), d in zip(params["padding"], dilation, strict=True)]
    return padded(x, value, config)


def _windows(x: torch.Tensor, params: Any, shape: Sequence[int]) -> torch.Tensor:
    """A view [*shape, *window] of a padded operand."""
    dilation = params.get("window_dilation") or (1,) * x.ndim
    outer = [a * b for a, b in zip(x.stride(), params["window_strides"], strict=True)]
    inner = [a * b for a, b in zip(x.stride(), dilation, strict=True)]
    return x.as_strided((*shape, *params["window_dimensions"]), (*outer, *inner))


def _define_pooling(kind: str, reduce: Callable[..., torch.Tensor]) -> None:
    @counts(f"reduce_window_{kind}")
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        start = 0 if kind == "sum" else infinity(equation.dtype, least=kind == "max")
        if 0 in equation.shape:
            return torch.zeros(equation.shape, device=x.device)
        windows = _windows(_padded(x, start, equation.params), equation.params, equation.shape)
        return reduce(windows, tuple(range(x.ndim, 2 * x.ndim))) if x.ndim else x


_define_pooling("sum", torch.sum)
_define_pooling("max", torch.amax)
_define_pooling("min", torch.amin)

_PREFER = {"ge": torch.ge, "le": torch.le, "gt": torch.gt, "lt": torch.lt}


@rules.define("select_and_scatter_add")
def select_and_scatter_add(equation: m2ml.Equation, source: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """Each window's source is added where the window's selected element, the first of equals, stands."""
    if not operand.numel() or not source.numel():
        return torch.zeros_like(operand)
    prefer, params = _PREFER[equation.params["select_prim"].name], equation.params
    indices = torch.arange(operand.numel(), device=operand.device).reshape(operand.shape)
    views = _windows(_padded(indices, -1, params), params, source.shape).reshape(*source.shape, -1)
    flat = operand.reshape(-1)
    selected = torch.full(source.shape, -1, device=operand.device)
    for part in views.unbind(-1):
        replace = (part >= 0) & ((selected < 0) | ~prefer(flat[selected], flat[part]))
        selected = torch.where(replace, part, selected)
    dtype = torch.float32 if source.dtype in HALVES else source.dtype
    result = torch.zeros(operand.numel(), dtype=dtype, device=operand.device)
    found = selected >= 0
    return result.index_add_(0, selected[found], source[found].to(dtype)).reshape(operand.shape).to(source.dtype)
