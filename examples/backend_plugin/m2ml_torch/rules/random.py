"""Random bits: threefry is integer arithmetic, so a seed gives the bits that JAX gives."""

from __future__ import annotations

import torch

import m2ml
from m2ml_torch.rules.table import rules

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MASK = 0xFFFFFFFF


@rules.define("threefry2x32")
def threefry2x32(equation: m2ml.Equation, *operands: torch.Tensor) -> list[torch.Tensor]:
    """The Threefry-2x32 block function with 20 rounds (Salmon et al., 2011), on 32-bit words held by int64."""
    k1, k2, x, y = (operand.to(torch.int64) for operand in operands)
    schedule = (k1, k2, k1 ^ k2 ^ _PARITY)
    x, y = (x + k1) & _MASK, (y + k2) & _MASK
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            x = (x + y) & _MASK
            y = x ^ (((y << distance) | (y >> (32 - distance))) & _MASK)
        x = (x + schedule[(block + 1) % 3]) & _MASK
        y = (y + schedule[(block + 2) % 3] + block + 1) & _MASK
    return [word.expand(equation.shape).to(torch.uint32) for word in (x, y)]


@rules.define("iota_2x32_shape")
def iota_2x32_shape(equation: m2ml.Equation) -> list[torch.Tensor]:
    """The high and the low words of 0, 1, 2, ... in row-major order."""
    count = torch.arange(torch.Size(equation.shape).numel())
    return [(word & _MASK).to(torch.uint32).reshape(equation.shape) for word in (count >> 32, count)]
