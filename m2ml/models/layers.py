"""What the models share: layer normalisation, GELU and dropout, written out in ``jnp``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m2ml import ops


def modules(items: Sequence[nnx.Module]) -> Any:
    """``items`` as an attribute Flax accepts: ``nnx.List`` where it exists, a plain list before that."""
    return getattr(nnx, "List", list)(items)


class LayerNorm(nnx.Module):
    """``(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`` over the last axis, in float32.

    ``x[*batch, features] -> [*batch, features]`` with the dtype of ``x``; ``scale`` and ``bias`` are float32[features].
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, /) -> jax.Array:
        normed: jax.Array = ops.layer_norm(x, self.scale[...], self.bias[...], eps=self.epsilon)
        return normed


def over_rows(layer: Callable[[jax.Array], jax.Array], x: jax.Array, /) -> jax.Array:
    """``layer(x)`` of a layer that maps the last axis, on ``x`` with its leading axes as one.

    The same numbers; but XLA on a CPU transposes whole arrays for the gradient of a product over two leading axes.
    """
    flat = layer(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], flat.shape[-1])


def of_length_one(x: jax.Array, /) -> jax.Array:
    """Rows divided by their length, in float32: ``x[*batch, features] -> same``. A row of zeros stays one."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), 1e-12)


def max_pool(x: jax.Array, /) -> jax.Array:
    """The largest of each 2x2 window; an odd last row or column is dropped.

    ``x[batch, height, width, channels] -> [batch, height // 2, width // 2, channels]``.
    """
    window = (1, 2, 2, 1)
    lowest = np.array(-np.inf, x.dtype)
    pooled: jax.Array = jax.lax.reduce_window(x, lowest, jax.lax.max, window, window, "VALID")
    return pooled


@jax.custom_jvp
def gelu(x: jax.Array, /) -> jax.Array:
    """``0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, elementwise (Hendrycks and Gimpel, arXiv:1606.08415).

    Its derivative is written out in ``x`` alone, so that training keeps ``x`` and none of the steps in between.
    """
    return 0.5 * x * (1 + jnp.tanh(_gelu_inner(x)))


def _gelu_inner(x: jax.Array) -> jax.Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    tanh = jnp.tanh(_gelu_inner(x))
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return gelu(x), tangent * 0.5 * (1 + tanh + x * (1 - tanh * tanh) * inner_slope)


def dropout(x: jax.Array, /, *, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability ``rate`` and scale the rest by ``1 / (1 - rate)``; without a key, ``x``."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


def split(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """``count`` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
