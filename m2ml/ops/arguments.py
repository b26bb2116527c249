"""What ops ask of their arguments beyond shapes, and the width they compute in."""

from __future__ import annotations

import math
import numbers
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
        if x is None:
            continue
        if not hasattr(x, "dtype"):
            raise TypeError(f"{op}: {name} is a {type(x).__name__}; it takes an array of {what}")
        if not jnp.issubdtype(x.dtype, kind):
            raise TypeError(f"{op}: {name} is {np.dtype(x.dtype).name}; it takes {what}")


def require_one_of(op: str, name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError where a static argument is not one of the values it may have."""
    if value not in (known := list(allowed)):
        said = " or ".join(filter(None, [", ".join(map(repr, known[:-1])), repr(known[-1])]))
        raise ValueError(f"{op}: {name} is {value!r}; it must be {said}")


def require_at_least(op: str, least: float, **values: float) -> None:
    """Raise ValueError where a number is below ``least``."""
    for name, value in values.items():
        require(op, value >= least, f"{name} is {value}; it must be at least {least:g}")


def require_positive(op: str, **values: Any) -> None:
    """Raise ValueError where a value is no positive and finite number."""
    for name, value in values.items():
        fits = isinstance(value, numbers.Real) and 0 < float(value) < math.inf
        require(op, fits, f"{name} is {value!r}; it must be a positive number")


def require(op: str, condition: bool, said: str) -> None:
    """Raise ValueError with ``said``, one sentence, where ``condition`` does not hold."""
    if not condition:
        raise ValueError(f"{op}: {said}")
