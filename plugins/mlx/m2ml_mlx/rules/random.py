"""Random bits: the same bits as JAX makes, because threefry and philox are integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from jax.lax import RandomAlgorithm

from m2ml.interpreter import Equation
from m2ml_mlx.rules.table import bits, cast, constant, out_dtype, rules, unsupported

Shape = tuple[int, ...]

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


def _low(x: mx.array) -> mx.array:
    return x.astype(mx.uint32)


def _high(x: mx.array) -> mx.array:
    return mx.right_shift(x, constant(32, mx.uint64)).astype(mx.uint32)


def _join(low: mx.array, high: mx.array) -> mx.array:
    return mx.bitwise_or(low.astype(mx.uint64), mx.left_shift(high.astype(mx.uint64), constant(32, mx.uint64)))


def philox(key: Sequence[mx.array], counter: Sequence[mx.array]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The Philox-4x32 block function with 10 rounds (Salmon et al., 2011) on uint32 arrays."""
    (k0, k1), (a, b, c, d) = key, counter
    for _ in range(10):
        p = a.astype(mx.uint64) * constant(0xD2511F53, mx.uint64)
        q = c.astype(mx.uint64) * constant(0xCD9E8D57, mx.uint64)
        a, b = mx.bitwise_xor(mx.bitwise_xor(_high(q), b), k0), _low(q)
        c, d = mx.bitwise_xor(mx.bitwise_xor(_high(p), d), k1), _low(p)
        k0, k1 = k0 + _word(0x9E3779B9), k1 + _word(0xBB67AE85)
    return a, b, c, d


def _philox_bits(key: mx.array, counter: mx.array, shape: Shape, width: int) -> tuple[mx.array, int]:
    """Four consecutive words per counter; the counter's upper half starts as the key."""
    words = math.prod(shape) * max(width // 32, 1)
    blocks = -(-words // 4)
    low = counter + mx.arange(blocks, dtype=mx.uint64)
    high = key + (low < counter).astype(mx.uint64)
    out = philox((_low(key), _high(key)), (_low(low), _high(low), _low(high), _high(high)))
    flat = mx.stack([*out], axis=-1).reshape(blocks * 4)[:words]
    bits = _join(flat[::2], flat[1::2]) if width == 64 else flat
    return bits.reshape(shape), blocks


def _threefry_bits(key: mx.array, counter: mx.array, shape: Shape, width: int) -> tuple[mx.array, int]:
    """Two words per counter: one element of 64 bits, or two neighbours along the axis that splits best."""
    rows = shape or (1,)
    axis = next((i for i, n in enumerate(rows) if n % 2 == 0), rows.index(max(rows)))
    half = rows if width == 64 else (*rows[:axis], -(-rows[axis] // 2), *rows[axis + 1 :])
    blocks = math.prod(half)
    counters = counter + mx.arange(blocks, dtype=mx.uint64).reshape(half)
    x, y = threefry((_low(key), _high(key)), (_low(counters), _high(counters)))
    if width == 64:
        return _join(x, y).reshape(shape), blocks
    pairs = mx.stack([x, y], axis=axis + 1).reshape((*rows[:axis], 2 * half[axis], *rows[axis + 1 :]))
    return mx.take(pairs, mx.arange(rows[axis]), axis=axis).reshape(shape), blocks


@rules.define("rng_bit_generator")
def rng_bit_generator(equation: Equation, state: mx.array) -> list[mx.array]:
    """XLA's generator: ``state`` is a key and a counter of 64 bits each; the default algorithm is philox."""
    words = state if state.dtype == mx.uint64 else state.view(mx.uint64)
    dtype = out_dtype(equation, 1)
    is_threefry = equation.params["algorithm"] == RandomAlgorithm.RNG_THREE_FRY
    make = _threefry_bits if is_threefry else _philox_bits
    drawn, blocks = make(words[0], words[1], tuple(equation.outputs[1].shape), bits(dtype))
    after = mx.stack([words[0], words[1] + constant(blocks, mx.uint64)])
    return [after if state.dtype == mx.uint64 else after.view(mx.uint32), cast(drawn, dtype)]
