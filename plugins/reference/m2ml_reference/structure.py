"""Primitives that make, move and join arrays without looking at their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules, wide


@rules.define("optimization_barrier")
def identity(equation: Equation, *arrays: Array) -> list[Array]:
    return list(arrays[: len(equation.outputs)])


@rules.define("tie")
def tie(equation: Equation, x: Array, y: Array) -> Array:
    """The second operand, once the first is there."""
    return y


@rules.define("broadcast_in_dim")
def broadcast_in_dim(equation: Equation, x: Array, *sizes: Array) -> Array:
    """Axis ``i`` of the operand becomes axis ``broadcast_dimensions[i]`` of the result."""
    shape = [1] * len(equation.shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), equation.shape)


@rules.define("broadcast_to")
def broadcast_to(equation: Equation, x: Array) -> Array:
    return np.broadcast_to(x, equation.shape)


@rules.define("reshape")
def reshape(equation: Equation, x: Array, *sizes: Array) -> Array:
    dimensions = equation.params.get("dimensions")
    return (x if dimensions is None else x.transpose(dimensions)).reshape(equation.shape)


@rules.define("squeeze", "expand_dims")
def resize(equation: Equation, x: Array) -> Array:
    return x.reshape(equation.shape)


@rules.define("transpose")
def transpose(equation: Equation, x: Array) -> Array:
    return x.transpose(equation.params["permutation"])


@rules.define("rev")
def rev(equation: Equation, x: Array) -> Array:
    return np.flip(x, equation.params["dimensions"])


@rules.define("slice")
def slice_(equation: Equation, x: Array) -> Array:
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


@rules.define("concatenate")
def concatenate(equation: Equation, *arrays: Array) -> Array:
    return np.concatenate(arrays, axis=equation.params["dimension"])


@rules.define("stack")
def stack(equation: Equation, *arrays: Array) -> Array:
    return np.stack(arrays, axis=equation.params["axis"])


@rules.define("unstack")
def unstack(equation: Equation, x: Array) -> list[Array]:
    return list(np.moveaxis(x, equation.params["axis"], 0))


@rules.define("split")
def split(equation: Equation, x: Array) -> list[Array]:
    return np.split(x, np.cumsum(equation.params["sizes"])[:-1], axis=equation.params["axis"])


@rules.define("tile")
def tile(equation: Equation, x: Array) -> Array:
    return np.tile(x, equation.params["reps"])


@rules.define("iota")
def iota(equation: Equation, *sizes: Array) -> Array:
    axis, shape = equation.params["dimension"], equation.shape
    counts = np.arange(shape[axis]).astype(wide(equation.dtype))
    return np.broadcast_to(counts.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


@rules.define("empty", "empty2", "zeros_like")
def zeros(equation: Equation, *arrays: Array) -> list[Array]:
    return [np.zeros(out.shape, wide(out.dtype)) for out in equation.outputs]


def pad_array(x: Array, value: Array, config: Sequence[tuple[int, int, int]]) -> Array:
    """``interior`` values between elements, then ``low`` and ``high`` at the ends, which may be negative."""
    shape, target, source = [], [], []
    for size, (low, high, interior) in zip(x.shape, config, strict=True):
        step = interior + 1
        length = max(low + high + max(size + (size - 1) * interior, 0), 0)
        first = max(0, -(low // step))
        last = min(size - 1, (length - 1 - low) // step)
        begin = low + first * step
        shape.append(length)
        source.append(slice(first, max(last + 1, first)))
        target.append(slice(begin, max(low + last * step + 1, begin), step))
    result = np.full(shape, value, x.dtype)
    if all(shape):
        result[tuple(target)] = x[tuple(source)]
    return result


@rules.define("pad")
def pad(equation: Equation, x: Array, value: Array) -> Array:
    return pad_array(x, value, equation.params["padding_config"])
