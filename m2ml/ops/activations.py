"""Activation functions that ops fuse, by name. Written out: a provider may have replaced those of ``jax.nn``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def relu(x: Array) -> Array:
    """``max(x, 0)``; its derivative at 0 is 0, and NaN stays NaN."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


def relu6(x: Array) -> Array:
    """``min(max(x, 0), 6)``; its derivative at 0 and at 6 is 0, and NaN stays NaN."""
    return jnp.where(x >= 6, jnp.full_like(x, 6), relu(x))


def silu(x: Array) -> Array:
    """``x sigmoid(x)``."""
    return x * jax.lax.logistic(x)


def gelu(x: Array) -> Array:
    """``x Phi(x)`` with the normal distribution function, whose tail ``erfc`` keeps exact."""
    return 0.5 * x * jax.lax.erfc(-x * math.sqrt(0.5))


def gelu_tanh(x: Array) -> Array:
    """``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))``, as ``x sigmoid`` of twice that argument."""
    return x * jax.lax.logistic(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def quick_gelu(x: Array) -> Array:
    """``x sigmoid(1.702 x)``."""
    return x * jax.lax.logistic(1.702 * x)


#: What the ``activation`` of an op may be.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": relu,
    "relu6": relu6,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}
