"""Counter-based random bits: the same on every engine, because they are integer arithmetic."""

from __future__ import annotations

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry(key: tuple[Array, Array], counts: tuple[Array, Array]) -> tuple[Array, Array]:
    """Twenty rounds of Threefry-2x32 (Salmon et al., 2011): encrypts a pair of counters with a pair of keys."""
    words = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = counts[0] + words[0], counts[1] + words[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + words[(block + 1) % 3]
        y = y + words[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


@rules.define("threefry2x32")
def threefry2x32(equation: Equation, key1: Array, key2: Array, x: Array, y: Array) -> list[Array]:
    return list(threefry((key1, key2), (x, y)))


@rules.define("iota_2x32_shape")
def iota_2x32_shape(equation: Equation) -> list[Array]:
    """The high and the low word of each element's row-major position."""
    shape = equation.params["shape"]
    counts = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64).reshape(shape)
    return [(counts >> np.uint64(32)).astype(np.uint32), counts.astype(np.uint32)]
