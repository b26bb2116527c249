"""What ops ask of their arguments beyond shapes, and the width they compute in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def wide(x: jax.Array) -> jax.Array:
    """``x`` in float32, or in its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def require_floating(op: str, **arrays: Any) -> None:
    """Raise TypeError where an array that is given does not hold real floating-point numbers."""
    _require(op, jnp.floating, "floating-point numbers", arrays)


def require_integers(op: str, **arrays: Any) -> None:
    """Raise TypeError where an array that is given does not hold integers."""
    _require(op, jnp.integer, "integers", arrays)


def _require(op: str, kind: Any, what: str, arrays: dict[str, Any]) -> None:
    for name, x in arrays.items():
        if x is not None and not jnp.issubdtype(x.dtype, kind):
            raise TypeError(f"{op}: {name} is {np.dtype(x.dtype).name}; it takes {what}")


def require_one_of(op: str, name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError where a static argument is not one of the values it may have."""
    if value not in (known := list(allowed)):
        said = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise ValueError(f"{op}: {name} is {value!r}; it must be {said}")


def require(op: str, condition: bool, said: str) -> None:
    """Raise ValueError with ``said``, one sentence, where ``condition`` does not hold."""
    if not condition:
        raise ValueError(f"{op}: {said}")
