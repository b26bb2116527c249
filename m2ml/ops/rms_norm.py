"""Root mean square normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require_at_least, require_floating
from m2ml.ops.inputs import rows

Array = jax.Array


@op(shapes="x[*b n], weight?[n] -> [*b n]")
def rms_norm(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Array:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang and Sennrich, 2019).

    ``x`` is ``[*b, n]``, ``weight`` ``[n]`` or None for ones; the result has ``x``'s shape and dtype. Half precision
    is worked out in float32 and rounded once. ``eps`` is added to the mean of squares. Raises TypeError where an array
    is not floating.
    """
    types(x, weight, eps=eps)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normal if weight is None else normal * weight.astype(wide.dtype)).astype(x.dtype)


@rms_norm.give_types
def types(x: Any, weight: Any, *, eps: float) -> jax.ShapeDtypeStruct:
    require_floating("rms_norm", x=x, weight=weight)
    require_at_least("rms_norm", 0, eps=eps)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@rms_norm.give_samples
def samples() -> Iterator[Sample]:
    for name, x in rows():
        weight = np.linspace(-2, 2, x.shape[-1], dtype=np.float32)
        yield Sample(name, (x, weight))
        yield Sample(f"{name}, no weight", (x, None))
    yield Sample("large eps", (np.ones((3, 5), np.float32), None), {"eps": 0.5})
    yield Sample("tiny values", (np.full((2, 7), 1e-4, np.float32), None), {"eps": 1e-5})


@rms_norm.law
def without_eps_the_mean_square_is_one(op: Any, x: Any, weight: Any = None, **static: Any) -> None:
    if x.size and np.all(np.mean(np.square(x, dtype=float), -1) > 1e-3):
        y = np.asarray(op(x, None, eps=0.0), float)
        unit = float(jnp.finfo(x.dtype).eps)
        assert np.all(np.abs(np.mean(y * y, -1) - 1) <= 8 * unit)


@rms_norm.law
def it_is_linear_in_the_weight(op: Any, x: Any, weight: Any = None, **static: Any) -> None:
    if weight is not None:
        np.testing.assert_array_equal(op(x, 2 * weight, **static), 2 * op(x, weight, **static))


@rms_norm.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    y = op(np.array([3.0, 4.0], np.float32), np.array([1.0, 2.0], np.float32), eps=12.5)
    np.testing.assert_allclose(y, [0.6, 1.6], rtol=1e-6)


rms_norm.give_cost(lambda x, weight=None, **static: (4 * x.size, 2 * x.size * x.dtype.itemsize))


@rms_norm.fault
def eps_ignored(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    return rms_norm.definition(x, weight, eps=0.0)


@rms_norm.fault
def eps_outside_the_root(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    root = jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2, -1, keepdims=True)) + eps
    return (x / root * (1 if weight is None else weight)).astype(x.dtype)


@rms_norm.fault
def weight_ignored(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    return rms_norm.definition(x, None, eps=eps)


@rms_norm.fault
def sum_for_mean(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    return rms_norm.definition(x, weight, eps=eps * x.shape[-1]) / np.sqrt(max(x.shape[-1], 1)).astype(x.dtype)


@rms_norm.fault
def centred(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    return rms_norm.definition((x - jnp.mean(x, -1, keepdims=True)).astype(x.dtype), weight, eps=eps)


@rms_norm.fault
def tail_dropped(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    """The last elements beyond a multiple of eight are left out of the sum."""
    n = x.shape[-1]
    kept = jnp.arange(n) < max(n - n % 8, 1)
    wide = x.astype(jnp.float32)
    mean = jnp.sum(jnp.where(kept, wide * wide, 0), -1, keepdims=True) / max(n, 1)
    return (wide * jax.lax.rsqrt(mean + eps) * (1 if weight is None else weight)).astype(x.dtype)


@rms_norm.fault
def half_precision_inside(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6) -> Any:
    return rms_norm.definition(x.astype(jnp.bfloat16), weight, eps=eps).astype(x.dtype)
