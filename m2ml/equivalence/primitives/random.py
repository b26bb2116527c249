"""Cases of the random primitives: the same bits everywhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import random as extend_random

from m2ml.equivalence.primitives.cases import Case, covers
from m2ml.equivalence.primitives.values import Draw, array, number, one_of, shape_of


@covers("threefry2x32")
def threefry(draw: Draw, name: str) -> Case:
    return extend_random.threefry_2x32, [array(draw, (2,), "uint32"), array(draw, shape_of(draw, 0, 2), "uint32")]


@covers("iota_2x32_shape")
def counters(draw: Draw, name: str) -> Case:
    """The counters of partitionable threefry."""
    shape, seed = one_of(draw, (7,), (2, 0), (3, 5), (2, 1, 3)), number(draw)

    def bits() -> Any:
        with jax.threefry_partitionable(True):
            return jax.random.bits(jax.random.key(seed), shape)

    return bits, []


@covers("multiply_add")
def uniform_in_a_range(draw: Draw, name: str) -> Case:
    """The product and the sum that scale a random number: one equation."""
    shape, seed = one_of(draw, (), (7,), (0, 2), (3, 5)), number(draw)
    low, width = np.random.default_rng(number(draw)).uniform((-10.0, 0.125), (10.0, 100.0))

    def sample(seed: Any, low: Any, width: Any) -> Any:
        return jax.random.uniform(jax.random.key(seed), shape, minval=low, maxval=low + width)

    return sample, [np.asarray(seed, np.uint32), np.asarray(low, np.float32), np.asarray(width, np.float32)]


@covers("rng_bit_generator")
def rng_bit_generator(draw: Draw, name: str) -> Case:
    shape, dtype = shape_of(draw, 0, 3), one_of(draw, *(np.dtype(f"uint{n}") for n in (8, 16, 32)))
    methods = lax.RandomAlgorithm.RNG_THREE_FRY, lax.RandomAlgorithm.RNG_PHILOX, lax.RandomAlgorithm.RNG_DEFAULT
    algorithm = one_of(draw, *methods)
    key = array(draw, (4,), "uint32")
    return lambda key: lax.rng_bit_generator(key, shape, dtype, algorithm), [key]


@covers("random_gamma")
def random_gamma(draw: Draw, name: str) -> Case:
    shape, seed = one_of(draw, (), (0,), (3, 5)), number(draw)
    a = array(draw, shape, "float32", low=1.0, high=10.0)

    def sample(a: Any) -> Any:
        return jax.random.gamma(jax.random.key(seed), a, dtype=jnp.float32)

    return sample, [a]
