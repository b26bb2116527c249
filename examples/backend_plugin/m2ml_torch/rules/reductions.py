"""Reductions, cumulative reductions, searches and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import m2ml
from m2ml_torch.arrays import HALVES, signed, wide
from m2ml_torch.rules.elementwise import infinity, total_order
from m2ml_torch.rules.table import counts, moves, out_dtype, rules


@counts("reduce_sum")
def reduce_sum(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    axes = tuple(equation.params["axes"])
    return torch.sum(x, axes) if axes else x


@counts("reduce_prod")
def reduce_prod(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    x = x.float() if x.dtype in HALVES else x
    for axis in sorted(equation.params["axes"], reverse=True):
        x = torch.prod(x, axis)
    return x


def _define_extreme(kind: str, reduce: Callable[..., torch.Tensor]) -> None:
    @counts(f"reduce_{kind}")
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        axes = tuple(equation.params["axes"])
        if any(x.shape[axis] == 0 for axis in axes):
            return torch.full(equation.shape, infinity(equation.dtype, least=kind == "max"), device=x.device)
        return reduce(x, axes) if axes else x


_define_extreme("max", torch.amax)
_define_extreme("min", torch.amin)


def _define_bits(kind: str, combine: Callable[..., torch.Tensor], identity: int) -> None:
    """Half of the elements with the other half, until one is left."""

    @moves(f"reduce_{kind}")
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        for axis in sorted(equation.params["axes"], reverse=True):
            x = x.movedim(axis, 0)
            while x.shape[0] > 1:
                half = x.shape[0] // 2
                x = torch.cat([combine(x[:half], x[half : 2 * half]), x[2 * half :]])
            x = x[0] if x.shape[0] else torch.full(x.shape[1:], identity, device=x.device).to(x.dtype)
        return x


_define_bits("and", torch.bitwise_and, -1)
_define_bits("or", torch.bitwise_or, 0)
_define_bits("xor", torch.bitwise_xor, 0)


def _define_cumulative(kind: str, accumulate: Callable[..., torch.Tensor]) -> None:
    @counts(f"cum{kind}")
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        axis = equation.params["axis"]
        x = x.float() if x.dtype in HALVES else x
        if not equation.params["reverse"]:
            return accumulate(x, axis)
        return torch.flip(accumulate(torch.flip(x, [axis]), axis), [axis])


_define_cumulative("sum", torch.cumsum)
_define_cumulative("prod", torch.cumprod)
_define_cumulative("max", lambda x, axis: torch.cummax(x, axis).values)
_define_cumulative("min", lambda x, axis: torch.cummin(x, axis).values)
_define_cumulative("logsumexp", torch.logcumsumexp)


def _define_search(name: str, search: Callable[..., torch.Tensor]) -> None:
    """The first extreme; a NaN counts as one."""

    @counts(name)
    def rule(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
        (axis,) = equation.params["axes"]
        return search(x.to(torch.uint8) if x.dtype == torch.bool else x, axis)


_define_search("argmax", torch.argmax)
_define_search("argmin", torch.argmin)


# Sorting --------------------------------------------------------------------------------------------


@rules.define("sort")
def sort(equation: m2ml.Equation, *operands: torch.Tensor) -> list[torch.Tensor]:
    """Operands sorted together, stably, by the first ``num_keys`` of them; NaN stands last."""
    axis, keys = equation.params["dimension"], operands[: equation.params["num_keys"]]
    order: Any = None
    for key in reversed(keys):
        values = wide(key) if order is None else torch.take_along_dim(wide(key), order, axis)
        step = torch.sort(values, dim=axis, stable=True).indices
        order = step if order is None else torch.take_along_dim(order, step, axis)
    taken = [torch.take_along_dim(signed(x), order, axis) for x in operands]
    return [y.view(x.dtype) for x, y in zip(operands, taken, strict=True)]


@rules.define("top_k")
def top_k(equation: m2ml.Equation, x: torch.Tensor) -> list[torch.Tensor]:
    """The largest in falling order and where they stand; of equals the first comes first."""
    return _largest(equation, x, equation.params["k"], equation.params.get("axis", x.ndim - 1))


def _largest(equation: m2ml.Equation, x: torch.Tensor, k: int, axis: int) -> list[torch.Tensor]:
    order = torch.sort(total_order(x), dim=axis, descending=True, stable=True).indices.narrow(axis, 0, k)
    return [torch.take_along_dim(signed(x), order, axis).view(x.dtype), order.to(out_dtype(equation, 1))]
