"""The same seed gives the same bits as JAX, on every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.equivalence.conformance.suite import Check, Subject, trace

#: Samplers whose results are the same bits everywhere, by name: ``sampler(key, shape)``.
SAMPLERS: Mapping[str, Callable[[Any, tuple[int, ...]], Any]] = {
    "bits": lambda key, shape: jax.random.bits(key, shape),
    "bits8": lambda key, shape: jax.random.bits(key, shape, jnp.uint8),
    "bits16": lambda key, shape: jax.random.bits(key, shape, jnp.uint16),
    "uniform": lambda key, shape: jax.random.uniform(key, shape),
    "symmetric uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1),
    "uniform in a range": lambda key, shape: jax.random.uniform(key, shape, minval=-2, maxval=3),
    "ranges as arguments": lambda key, shape: jax.random.uniform(key, shape, minval=jnp.float32(0.1), maxval=0.7),
    "mapped ranges": lambda key, shape: jax.vmap(lambda k: jax.random.uniform(k, shape, minval=-2, maxval=3))(
        jax.random.split(key, 5)
    ),
    "uniform bfloat16": lambda key, shape: jax.random.uniform(key, shape, jnp.bfloat16),
    "uniform float16": lambda key, shape: jax.random.uniform(key, shape, jnp.float16),
    "randint": lambda key, shape: jax.random.randint(key, shape, -5, 1000),
    "randint8": lambda key, shape: jax.random.randint(key, shape, -5, 100, jnp.int8),
    "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    "rademacher": lambda key, shape: jax.random.rademacher(key, shape),
    "permutation": lambda key, shape: jax.random.permutation(key, max(len(shape), 1) * 37),
    "permuted rows": lambda key, shape: jax.random.permutation(
        key, jnp.arange(24).reshape(8, 3), axis=1, independent=True
    ),
    "choice": lambda key, shape: jax.random.choice(key, 50, shape, replace=True),
    "split": lambda key, shape: [jax.random.key_data(k) for k in jax.random.split(key, 3)],
    "fold_in": lambda key, shape: jax.random.key_data(jax.random.fold_in(key, 7)),
}

#: Numbers made from uniform ones by functions that engines round differently: within the measured bound.
ROUNDED: Mapping[str, Callable[[Any], Any]] = {
    "normal": lambda key: jax.random.normal(key, (64,)),
    "truncated normal": lambda key: jax.random.truncated_normal(key, -1.5, 2.5, (64,)),
    "initial weights": lambda key: jax.nn.initializers.lecun_normal()(key, (7, 5)),
    "exponential": lambda key: jax.random.exponential(key, (20,)),
    "gumbel": lambda key: jax.random.gumbel(key, (20,)),
    "categorical": lambda key: jax.random.categorical(key, jnp.linspace(-1.0, 2.0, 50).reshape(10, 5)),
}

IMPLEMENTATIONS = ("threefry2x32", "rbg")


def checks(subject: Subject) -> Iterable[Check]:
    for name in SAMPLERS:
        yield Check("random numbers", name, _same_bits(name))
    for implementation in IMPLEMENTATIONS:
        yield Check("random numbers", f"keys of {implementation}", _same_keys(implementation))
    for name in ROUNDED:
        yield Check("random numbers", name, _within_the_bound(name))


def _assert_same_bits(subject: Subject, fn: Callable[..., Any], seed: np.uint32) -> None:
    got = subject.run(trace(fn, seed), seed)
    for x, y in zip(got, map(np.asarray, jax.tree.leaves(jax.jit(fn)(seed))), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes(), f"other numbers than JAX draws from seed {seed}: {x} for {y}"


def _same_bits(name: str) -> Callable[[Subject], None]:
    def sample(seed: Any) -> Any:
        return [SAMPLERS[name](jax.random.key(seed), shape) for shape in ((), (3, 5))]

    return lambda subject: _assert_same_bits(subject, sample, np.uint32(2**31 + 11))


def _same_keys(implementation: str) -> Callable[[Subject], None]:
    def sample(seed: Any) -> Any:
        key = jax.random.key(seed, impl=implementation)
        return jax.random.bits(key, (5, 3)), jax.random.uniform(jax.random.split(key)[1], (4,))

    return lambda subject: _assert_same_bits(subject, sample, np.uint32(11))


def _within_the_bound(name: str) -> Callable[[Subject], None]:
    return lambda subject: subject.agree(lambda seed: ROUNDED[name](jax.random.key(seed)), np.uint32(5))
