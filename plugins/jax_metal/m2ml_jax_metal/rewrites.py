"""Primitives lowered otherwise on a provider's platform, because its own way of running them is known to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def rev(x: Any, /, *, dimensions: Sequence[int]) -> Any:
    """``lax.rev`` that makes a new array: elements are gathered, so that no view with negative strides exists."""
    for axis in dimensions:
        x = jnp.take(x, jnp.arange(x.shape[axis] - 1, -1, -1), axis=axis, mode="clip")
    return x


#: Name of a rewrite -> the primitive and the function that runs in its place.
REWRITES: Mapping[str, tuple[Any, Callable[..., Any]]] = {"rev": (jax.lax.rev_p, rev)}


def register(names: Sequence[str], platform: str) -> None:
    """Lower the primitives of these rewrites by their functions on ``platform``, which JAX must know by now."""
    from jax.interpreters import mlir

    for primitive, function in (REWRITES[name] for name in names if name in REWRITES):
        mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False), platform=platform)
