"""Counter-based random bits: the same on every engine, because they are integer arithmetic.

Threefry and Philox are those of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(2011). An array of counters is encrypted with a key; the results are the random words.
"""

from __future__ import annotations

import math

import numpy as np

from m2ml.interpreter import Equation
from m2ml_reference.values import Array, rules

Words = tuple[Array, ...]

_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS_2X32 = (13, 15, 26, 6, 17, 29, 16, 24)
_ROTATIONS_4X32 = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
_MULTIPLIERS = (np.uint32(0xD2511F53), np.uint32(0xCD9E8D57))
_MULTIPLIER_2X32 = np.uint32(0xD256D193)
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))


def _mix(x: Array, y: Array, rotation: int) -> tuple[Array, Array]:
    x = x + y
    return x, x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))


def threefry(key: Words, counts: Words) -> tuple[Array, Array]:
    """Twenty rounds of Threefry-2x32; the key is added anew after every fourth."""
    words = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = counts[0] + words[0], counts[1] + words[1]
    for turn in range(20):
        x, y = _mix(x, y, _ROTATIONS_2X32[turn % 8])
        if turn % 4 == 3:
            block = turn // 4 + 1
            x, y = x + words[block % 3], y + words[(block + 1) % 3] + np.uint32(block)
    return x, y


def threefry4(key: Words, counts: Words) -> Words:
    """Twenty rounds of Threefry-4x32."""
    words = (*key, key[0] ^ key[1] ^ key[2] ^ key[3] ^ _PARITY)
    x = [count + word for count, word in zip(counts, words, strict=False)]
    for turn in range(20):
        first, second = (1, 3) if turn % 2 == 0 else (3, 1)
        rotations = _ROTATIONS_4X32[turn % 8]
        x[0], x[first] = _mix(x[0], x[first], rotations[0])
        x[2], x[second] = _mix(x[2], x[second], rotations[1])
        if turn % 4 == 3:
            block = turn // 4 + 1
            x = [value + words[(block + i) % 5] for i, value in enumerate(x)]
            x[3] = x[3] + np.uint32(block)
    return tuple(x)


def _product(x: Array, factor: np.uint32) -> tuple[Array, Array]:
    """High and low word of a product."""
    product = x.astype(np.uint64) * np.uint64(factor)
    return (product >> np.uint64(32)).astype(np.uint32), product.astype(np.uint32)


def philox(key: Words, counts: Words) -> Words:
    """Ten rounds of Philox-4x32."""
    (first, second), (a, b, c, d) = key, counts
    for _ in range(10):
        high0, low0 = _product(a, _MULTIPLIERS[0])
        high1, low1 = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ first, low1, high0 ^ d ^ second, low0
        first, second = first + _WEYL[0], second + _WEYL[1]
    return a, b, c, d


def philox2(key: Array, counts: Words) -> Words:
    """Ten rounds of Philox-2x32."""
    x, y = counts
    for _ in range(10):
        high, low = _product(x, _MULTIPLIER_2X32)
        x, y = high ^ y ^ key, low
        key = key + _WEYL[0]
    return x, y


@rules.define("threefry2x32")
def threefry2x32(equation: Equation, *words: Array) -> list[Array]:
    return list(threefry(words[:2], words[2:]))


@rules.define("threefry4x32")
def threefry4x32(equation: Equation, *words: Array) -> list[Array]:
    return list(threefry4(words[:4], words[4:]))


@rules.define("philox2x32")
def philox2x32(equation: Equation, *words: Array) -> list[Array]:
    return list(philox2(words[0], words[1:]))


@rules.define("philox4x32")
def philox4x32(equation: Equation, *words: Array) -> list[Array]:
    return list(philox(words[:2], words[2:]))


def halves(x: Array) -> tuple[Array, Array]:
    """The low and the high words of 64-bit integers."""
    return x.astype(np.uint32), (x >> np.uint64(32)).astype(np.uint32)


def joined(low: Array, high: Array) -> Array:
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


@rules.define("iota_2x32_shape")
def iota_2x32_shape(equation: Equation) -> list[Array]:
    """The high and the low word of each element's row-major position."""
    shape = equation.params["shape"]
    return list(halves(np.arange(math.prod(shape), dtype=np.uint64).reshape(shape))[::-1])


@rules.define("rng_bit_generator")
def rng_bit_generator(equation: Equation, state: Array) -> list[Array]:
    """Random bits from a key and a counter, and the state after them. Philox by default, as on XLA's CPU."""
    dtype = equation.outputs[1].dtype
    key, counter = np.ascontiguousarray(state).view(np.uint64)
    draw = _threefry_bits if equation.params["algorithm"].name == "RNG_THREE_FRY" else _philox_bits
    shape = tuple(equation.params["shape"])
    bits, used = draw(key, counter, shape, 64 if np.dtype(dtype).itemsize == 8 else 32)
    after = np.array([key, counter + np.uint64(used)]).view(state.dtype)
    return [after, bits.astype(dtype)]


def _threefry_bits(key: Array, counter: Array, shape: tuple[int, ...], bits: int) -> tuple[Array, int]:
    """A pair of words per counter. In 32 bits the two lie side by side along the first even axis, or the longest."""
    if bits == 64:
        counters = counter + np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
        return joined(*threefry(halves(key), halves(counters))), counters.size
    sizes = shape or (1,)
    even = [axis for axis, size in enumerate(sizes) if size % 2 == 0]
    axis = even[0] if even else sizes.index(max(sizes))
    half = [-(-size // 2) if i == axis else size for i, size in enumerate(sizes)]
    counters = counter + np.arange(math.prod(half), dtype=np.uint64).reshape(half)
    pairs = np.stack(threefry(halves(key), halves(counters)), axis=axis + 1)
    whole = pairs.reshape([2 * n if i == axis else n for i, n in enumerate(half)])
    return np.take(whole, np.arange(sizes[axis]), axis).reshape(shape), counters.size


def _philox_bits(key: Array, counter: Array, shape: tuple[int, ...], bits: int) -> tuple[Array, int]:
    """Four words per counter of 128 bits, whose high half is the key."""
    size = math.prod(shape)
    blocks = -(-size * bits // 128)
    counters = counter + np.arange(blocks, dtype=np.uint64)
    carry = (counters < counter).astype(np.uint64)
    words = philox(halves(key), (*halves(counters), *halves(key + carry)))
    flat = np.stack(words, axis=1).reshape(-1)
    if bits == 64:
        flat = joined(flat[::2], flat[1::2])
    return flat[:size].reshape(shape), blocks
