"""Random bits: the same bits as JAX makes, because threefry and philox are integer arithmetic."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import constant, rules, unsupported

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def _word(value: int) -> mx.array:
    return constant(value, mx.uint32)


def _rotate_left(x: mx.array, distance: int) -> mx.array:
    return mx.bitwise_or(mx.left_shift(x, _word(distance)), mx.right_shift(x, _word(32 - distance)))


def threefry(key: tuple[mx.array, mx.array], counter: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
    """The Threefry-2x32 block function with 20 rounds (Salmon et al., 2011) on uint32 arrays."""
    schedule = (*key, mx.bitwise_xor(mx.bitwise_xor(*key), _word(_PARITY)))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            x = x + y
            y = mx.bitwise_xor(x, _rotate_left(y, distance))
        x = x + schedule[(block + 1) % 3]
        y = y + (schedule[(block + 2) % 3] + _word(block + 1))
    return x, y


@rules.define("threefry2x32")
def threefry2x32(equation: Equation, k1: mx.array, k2: mx.array, x1: mx.array, x2: mx.array) -> list[mx.array]:
    x, y = threefry((k1, k2), (x1, x2))
    return [mx.broadcast_to(x, equation.shape), mx.broadcast_to(y, equation.shape)]


@rules.define("iota_2x32_shape")
def iota_2x32_shape(equation: Equation) -> list[mx.array]:
    """The high and the low words of 0, 1, 2, ... in row-major order."""
    shape = equation.shape
    count = math.prod(shape)
    if count > np.iinfo(np.uint32).max:
        raise unsupported(equation, "it counts more than 2**32 elements")
    return [mx.zeros(shape, mx.uint32), mx.arange(count, dtype=mx.uint32).reshape(shape)]
