"""What makes, moves and joins arrays without looking at their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import m2ml
from m2ml_torch.rules.table import moves, out_dtype, rules


@rules.define("optimization_barrier")
def identity(equation: m2ml.Equation, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(tensors)


@moves("broadcast_in_dim")
def broadcast_in_dim(equation: m2ml.Equation, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    shape = [1] * len(equation.shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return x.reshape(shape).expand(equation.shape)


@moves("reshape")
def reshape(equation: m2ml.Equation, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    dimensions = equation.params["dimensions"]
    return (x if dimensions is None else x.permute(dimensions)).reshape(equation.shape)


@moves("squeeze", "expand_dims")
def resize(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(equation.shape)


@moves("transpose")
def transpose(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return x.permute(equation.params["permutation"])


@moves("rev")
def rev(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.flip(x, equation.params["dimensions"])


@moves("slice")
def slice_(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


@moves("concatenate")
def concatenate(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors, equation.params["dimension"])


@moves("split")
def split(equation: m2ml.Equation, x: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.split(x, list(equation.params["sizes"]), equation.params["axis"])


@moves("stack")
def stack(equation: m2ml.Equation, *tensors: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensors, equation.params["axis"])


@moves("unstack")
def unstack(equation: m2ml.Equation, x: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.unbind(x, equation.params["axis"])


@moves("tile")
def tile(equation: m2ml.Equation, x: torch.Tensor) -> torch.Tensor:
    return torch.tile(x, equation.params["reps"])


@rules.define("iota")
def iota(equation: m2ml.Equation, *_: torch.Tensor) -> torch.Tensor:
    axis, shape = equation.params["dimension"], equation.shape
    count = torch.arange(shape[axis]).to(out_dtype(equation))
    return count.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


@rules.define("empty", "empty2")
def empty(equation: m2ml.Equation, *_: torch.Tensor) -> torch.Tensor:
    return torch.zeros(equation.shape, dtype=out_dtype(equation))


def padded(x: torch.Tensor, value: Any, config: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """``interior`` values between elements, then ``low`` and ``high`` at the ends, which may be negative."""
    shape, target, source = [], [], []
    for size, (low, high, interior) in zip(x.shape, config, strict=True):
        step = interior + 1
        length = max(low + high + max(size + (size - 1) * interior, 0), 0)
        first, last = max(0, -(low // step)), min(size - 1, (length - 1 - low) // step)
        begin = low + first * step
        shape.append(length)
        source.append(slice(first, max(last + 1, first)))
        target.append(slice(begin, max(low + last * step + 1, begin), step))
    result = torch.empty(shape, dtype=x.dtype, device=x.device)
    result[...] = value
    if all(shape):
        result[tuple(target)] = x[tuple(source)]
    return result


@moves("pad")
def pad(equation: m2ml.Equation, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return padded(x, value, equation.params["padding_config"])


def _called_back(equation: m2ml.Equation, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Callbacks run on the host, as JAX runs them."""
    outs = equation.bind(*(x.cpu().numpy() for x in tensors))
    return [torch.from_numpy(np.array(y)) for y in outs]


rules.define("debug_callback", "debug_print", "io_callback", "pure_callback")(_called_back)
