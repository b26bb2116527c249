"""Samples of the gamma distribution, from the same random bits as JAX's.

The method is Marsaglia and Tsang's, "A simple method for generating gamma variables" (2000). Every element has
its own key, so elements still waiting for an accepted sample are drawn again together.
"""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import scipy.special

from m2ml.errors import ExecutionError
from m2ml.interpreter import Equation
from m2ml_reference.random import threefry
from m2ml_reference.values import Array, round_to_dtype, rules


def _encrypt(keys: Array, count: int) -> Array:
    """[n, count, 2]: the words of the counters below ``count`` under each key [n, 2]."""
    counters = np.arange(count, dtype=np.uint32)
    words = threefry((keys[:, :1], keys[:, 1:]), (np.zeros_like(counters), counters))
    return np.stack(words, axis=-1)


def _split(keys: Array, count: int) -> list[Array]:
    return list(np.moveaxis(_encrypt(keys, count), 1, 0))


def _uniform(keys: Array, dtype: np.dtype) -> Array:
    """One number of [0, 1) per key, made of as many random bits as the dtype has in its mantissa."""
    info = ml_dtypes.finfo(dtype)
    width = int(info.bits) if info.nmant >= 8 else 8
    high, low = _encrypt(keys, 1)[:, 0].T
    if width == 64:
        bits = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    else:
        bits = (high ^ low).astype(np.dtype(f"u{width // 8}"))
    return np.asarray(np.ldexp((bits >> bits.dtype.type(width - int(info.nmant))).astype(np.float64), -int(info.nmant)))


def _normal(keys: Array, dtype: np.dtype) -> Array:
    """Of a uniform number of (-1, 1) as the dtype holds it: rounding it decides the digits far out and near 0."""
    low = float(np.nextafter(np.asarray(-1, dtype), np.asarray(0, dtype)))
    u = np.maximum(low, round_to_dtype(_uniform(keys, dtype) * 2 + low, dtype))
    return np.asarray(np.sqrt(2) * scipy.special.erfinv(u))


def _cubes(keys: Array, c: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """A normal ``x`` with ``1 + c x`` positive, squared, and the cube of ``1 + c x``, per key."""
    x, v = np.zeros(len(keys)), np.full(len(keys), -1.0)
    while (waiting := v <= 0).any():
        following, now = _split(keys[waiting], 2)
        keys[waiting] = following
        x[waiting] = _normal(now, dtype)
        v[waiting] = 1 + x[waiting] * c[waiting]
    return x * x, v * v * v


def _accepted_cubes(keys: Array, d: Array, c: Array, dtype: np.dtype) -> Array:
    cubes = np.ones(len(keys))
    waiting = np.arange(len(keys))
    while waiting.size:
        following, normal_keys, uniform_keys = _split(keys[waiting], 3)
        keys[waiting] = following
        square, cube = _cubes(normal_keys.copy(), c[waiting], dtype)
        u = _uniform(uniform_keys, dtype)
        cubes[waiting] = cube
        unlikely = np.log(u) >= square / 2 + d[waiting] * (1 - cube + np.log(cube))
        waiting = waiting[(u >= 1 - 0.0331 * square * square) & unlikely]
    return cubes


def sample_gamma(keys: Array, alpha: Array, dtype: np.dtype, *, log_space: bool) -> Array:
    """One sample per key; a shape below 1 is raised by 1 and the sample multiplied by a power of a uniform number."""
    small = alpha < 1
    d = np.where(small, alpha + 1, alpha) - 1 / 3
    following, boost_keys = _split(keys, 2)
    cubes = _accepted_cubes(following.copy(), d, 1 / 3 / np.sqrt(d), dtype)
    uniform = _uniform(boost_keys, dtype)
    if log_space:
        boost = np.where(small & (uniform != 0), np.log1p(-uniform) / alpha, 0)
        return np.log(d) + np.log(cubes) + boost
    return d * cubes * np.where(small, (1 - uniform) ** (1 / alpha), 1)


@rules.define("random_gamma")
def random_gamma(equation: Equation, keys: Array, alpha: Array) -> Array:
    if keys.shape[-1] != 2 or not getattr(jax.config, "jax_threefry_partitionable", True):
        raise ExecutionError("random_gamma is defined for threefry keys in partitionable mode")
    flat = keys.reshape(-1, 2)
    count = alpha.size // max(len(flat), 1)
    each = _encrypt(flat, count).reshape(-1, 2)
    samples = sample_gamma(each, alpha.reshape(-1), equation.dtype, log_space=equation.params["log_space"])
    return samples.reshape(alpha.shape)
