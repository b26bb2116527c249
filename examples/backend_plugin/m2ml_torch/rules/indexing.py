"""Gather, scatter and dynamic slices, with indices out of range as JAX defines them.

Gather and scatter move windows that begin at an index vector. `_positions` says which elements each one covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

import m2ml
from m2ml_torch.arrays import from_host, signed, wide
from m2ml_torch.rules.elementwise import in_total_order, infinity, total_order
from m2ml_torch.rules.table import counts, moves, rules

Tensors = Sequence[torch.Tensor]


def _starts(
    ndim: int, indices: torch.Tensor, mapped: Sequence[int], batching: Sequence[int], index_batching: Sequence[int]
) -> list[torch.Tensor]:
    """Per axis of the operand, where each window begins: a tensor over the batch axes of ``indices``."""
    batch = indices.shape[:-1]
    starts = [torch.zeros(batch, dtype=torch.int64, device=indices.device) for _ in range(ndim)]
    for column, axis in enumerate(mapped):
        starts[axis] = indices[..., column]
    for axis, index_axis in zip(batching, index_batching, strict=True):
        count = torch.arange(batch[index_axis], device=indices.device)
        starts[axis] = count.reshape([-1 if i == index_axis else 1 for i in range(len(batch))]).expand(batch)
    return starts


def _inside(starts: Tensors, shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """Whether each window lies wholly within the operand."""
    result = torch.ones_like(starts[0], dtype=torch.bool)
    for start, length, size in zip(starts, shape, sizes, strict=True):
        result = result & (start >= 0) & (start <= length - size)
    return result


def _positions(starts: Tensors, shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """Flat positions [*batch, *sizes] of what the windows cover, moved into range."""
    batch, ndim = starts[0].shape, len(shape)
    flat = torch.zeros((*batch, *[1] * ndim), dtype=torch.int64, device=starts[0].device)
    for axis, (start, length, size) in enumerate(zip(starts, shape, sizes, strict=True)):
        begin = start.clamp(0, max(length - size, 0)).reshape(*batch, *[1] * ndim)
        offset = torch.arange(size, device=start.device).reshape([-1 if i == axis else 1 for i in range(ndim)])
        flat = flat * length + (begin + offset)
    return flat.expand(*batch, *sizes)


def _place(batch_ndim: int, offset_dims: Sequence[int], ndim: int) -> list[int]:
    """The permutation from [*batch, *offset] to the order of the result."""
    rest, offsets = iter(range(batch_ndim)), {dim: batch_ndim + i for i, dim in enumerate(offset_dims)}
    return [offsets[i] if i in offsets else next(rest) for i in range(ndim)]


def _fill(equation: m2ml.Equation, device: torch.device) -> torch.Tensor:
    """What stands for a window out of range: NaN, the greatest unsigned or the least signed integer, or True."""
    value, kind = equation.params["fill_value"], equation.dtype.kind
    if value is None:
        value = infinity(equation.dtype, least=kind == "i") if kind in "bui" else math.nan
    return signed(from_host(np.array(value, equation.dtype), device))


@moves("gather")
def gather(equation: m2ml.Equation, operand: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """One window per index vector; out of range, it is moved inside or, in fill mode, replaced by the fill value."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    indices = unsigned(equation, 1, indices)
    batch = indices.shape[:-1]
    batching = (numbers.operand_batching_dims, numbers.start_indices_batching_dims)
    starts = _starts(operand.ndim, indices, numbers.start_index_map, *batching)
    windows = torch.zeros((*batch, *sizes), dtype=operand.dtype, device=operand.device)
    if operand.numel() and operand.ndim:
        windows = operand.reshape(-1)[_positions(starts, operand.shape, sizes)]
    elif not operand.ndim:
        windows = operand.expand(batch)
    if equation.params["mode"].name == "FILL_OR_DROP" and operand.ndim:
        known = _inside(starts, operand.shape, sizes).reshape(*batch, *[1] * operand.ndim)
        windows = torch.where(known, windows, _fill(equation, operand.device))
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [size for axis, size in enumerate(sizes) if axis not in dropped]
    return windows.reshape((*batch, *kept)).permute(_place(len(batch), numbers.offset_dims, len(equation.shape)))


def unsigned(equation: m2ml.Equation, operand: int, indices: torch.Tensor) -> torch.Tensor:
    """Indices as int64: those that `moves` gives as signed are read as what they are."""
    dtype = equation.inputs[operand].dtype
    indices = wide(indices)
    return indices & ((1 << 8 * dtype.itemsize) - 1) if dtype.kind == "u" else indices


def _plan(
    equation: m2ml.Equation, operand: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions in the operand and the updates that go there; windows that count only."""
    numbers = equation.params["dimension_numbers"]
    indices = unsigned(equation, 1, indices)
    batch = indices.shape[:-1]
    removed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window_sizes = iter([updates.shape[i] for i in numbers.update_window_dims])
    sizes = [1 if axis in removed else next(window_sizes) for axis in range(operand.ndim)]
    batching = (numbers.operand_batching_dims, numbers.scatter_indices_batching_dims)
    order = _place(len(batch), numbers.update_window_dims, updates.ndim)
    inverse = sorted(range(updates.ndim), key=order.__getitem__)
    values = updates.permute(inverse).reshape(*batch, *sizes)
    if not operand.ndim:
        return torch.zeros(values.numel(), dtype=torch.int64), values.reshape(-1)
    starts = _starts(operand.ndim, indices, numbers.scatter_dims_to_operand_dims, *batching)
    targets = _positions(starts, operand.shape, sizes)
    if equation.params["mode"].name == "CLIP":
        return targets.reshape(-1), values.reshape(-1)
    known = _inside(starts, operand.shape, sizes)
    return targets[known].reshape(-1), values[known].reshape(-1)


@moves("scatter")
def scatter(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
    targets, values = _plan(equation, *tensors)
    result = tensors[0].clone().reshape(-1)
    result[targets] = values
    return result.reshape(equation.shape)


def _define_sum(kind: str, sign: int) -> None:
    @moves(f"scatter_{kind}")
    def rule(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
        targets, values = _plan(equation, *tensors)
        return tensors[0].clone().reshape(-1).index_add_(0, targets, values, alpha=sign).reshape(equation.shape)


_define_sum("add", 1)
_define_sum("sub", -1)


@counts("scatter_mul")
def scatter_mul(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
    targets, values = _plan(equation, *tensors)
    return tensors[0].clone().reshape(-1).scatter_reduce_(0, targets, values, "prod").reshape(equation.shape)


def _define_extreme(kind: str, last: float) -> None:
    """As integers in the total order, where 0 is larger than -0, and NaN, ``last``, beyond everything else."""

    @counts(f"scatter_{kind}")
    def rule(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
        targets, values = _plan(equation, *tensors)
        operand, floating = tensors[0].reshape(-1), values.is_floating_point()
        if floating:
            operand, values = (total_order(torch.where(x == x, x, last)) for x in (operand, values))
        result = operand.clone().scatter_reduce_(0, targets, values, f"a{kind}").reshape(equation.shape)
        return in_total_order(result) if floating else result


_define_extreme("max", math.nan)
_define_extreme("min", -math.nan)


def _corner(equation: m2ml.Equation, shape: Sequence[int], sizes: Sequence[int], starts: Tensors) -> tuple[slice, ...]:
    begins = [
        min(max(int(wide(start)), 0), length - size) for start, length, size in zip(starts, shape, sizes, strict=True)
    ]
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


@rules.define("dynamic_slice")
def dynamic_slice(equation: m2ml.Equation, operand: torch.Tensor, *starts: torch.Tensor) -> torch.Tensor:
    """A slice whose start is moved so that it lies inside."""
    return operand[_corner(equation, operand.shape, equation.shape, starts[: operand.ndim])]


@rules.define("dynamic_update_slice")
def dynamic_update_slice(
    equation: m2ml.Equation, operand: torch.Tensor, update: torch.Tensor, *starts: torch.Tensor
) -> torch.Tensor:
    result = operand.clone()
    result[_corner(equation, operand.shape, update.shape, starts)] = update
    return result
