"""Residual addition and root mean square normalisation in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require_at_least, require_floating, wide
from m2ml.ops.inputs import normal, rows

Array = jax.Array


@op(shapes="x[*b n], residual[*b n], weight?[n] -> y[*b n], total[*b n]")
def add_rms_norm(
    x: Array, residual: Array, weight: Array | None = None, /, *, eps: float = 1e-6
) -> tuple[Array, Array]:
    """``total = x + residual`` and ``y = total / sqrt(mean(total**2) + eps) * weight``; gives ``(y, total)``.

    ``x`` and ``residual`` are ``[*b, n]``, ``weight`` ``[n]`` or None for ones. Both results have ``x``'s shape and the
    wider dtype of ``x`` and ``residual``. The sum is rounded to that dtype before it is normalised, so that ``y`` is
    `rms_norm` of the ``total`` that goes on to the next layer; the normalisation of half precision is worked out in
    float32 and rounded once. Raises TypeError where an array is not floating.
    """
    require_floating("add_rms_norm", x=x, residual=residual, weight=weight)
    require_at_least("add_rms_norm", 0, eps=eps)
    total = (wide(x) + wide(residual)).astype(jnp.promote_types(x.dtype, residual.dtype))
    normal = wide(total) * jax.lax.rsqrt(jnp.mean(wide(total) * wide(total), axis=-1, keepdims=True) + eps)
    y = normal if weight is None else normal * weight.astype(normal.dtype)
    return y.astype(total.dtype), total


@add_rms_norm.give_samples
def samples() -> Iterator[Sample]:
    for i, (name, x) in enumerate(rows()):
        weight = np.linspace(-2, 2, x.shape[-1], dtype=np.float32)
        yield Sample(name, (x, normal(x.shape, 40 + i, 2.0), weight if i % 2 else None))
    yield Sample("large eps", (np.ones((3, 5), np.float32), normal((3, 5)), None), {"eps": 0.5})
    small = np.full((2, 7), 1e-4, np.float32)
    yield Sample("tiny values", (small, small, None), {"eps": 1e-5})


@add_rms_norm.law
def the_total_is_the_sum(op: Any, x: Any, residual: Any, *args: Any, **static: Any) -> None:
    np.testing.assert_array_equal(op(x, residual, *args, **static)[1], x + residual)


@add_rms_norm.law
def the_arguments_commute(op: Any, x: Any, residual: Any, *args: Any, **static: Any) -> None:
    one, other = op(x, residual, *args, **static), op(residual, x, *args, **static)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@add_rms_norm.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    x, residual, weight = (np.array(v, np.float32) for v in ([1.0, 5.0], [2.0, -1.0], [1.0, 2.0]))
    y, total = op(x, residual, weight, eps=12.5)
    np.testing.assert_allclose(y, [0.6, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(total, [3.0, 4.0])


@add_rms_norm.give_main
def main_sizes() -> Iterator[Sample]:
    for n in (1024, 4096):
        yield Sample(f"64 rows of {n}", (normal((64, n)), normal((64, n), 1), normal((n,), 2)))


add_rms_norm.give_cost(lambda x, residual, weight=None, **static: (5 * x.size, 4 * x.size * x.dtype.itemsize))


@add_rms_norm.fault
def residual_not_added(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    return add_rms_norm.definition(x, jnp.zeros_like(residual), weight, eps=eps)


@add_rms_norm.fault
def total_is_the_residual(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    return add_rms_norm.definition(x, residual, weight, eps=eps)[0], residual


@add_rms_norm.fault
def norm_of_x_alone(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    _, total = add_rms_norm.definition(x, residual, weight, eps=eps)
    return add_rms_norm.definition(x, jnp.zeros_like(x), weight, eps=eps)[0], total


@add_rms_norm.fault
def results_exchanged(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    return add_rms_norm.definition(x, residual, weight, eps=eps)[::-1]


@add_rms_norm.fault
def weight_ignored(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    return add_rms_norm.definition(x, residual, None, eps=eps)


@add_rms_norm.fault
def eps_ignored(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    return add_rms_norm.definition(x, residual, weight, eps=0.0)


@add_rms_norm.fault
def sum_in_half_precision(x: Array, residual: Array, weight: Any = None, /, *, eps: float = 1e-6) -> Any:
    y, total = add_rms_norm.definition(x.astype(jnp.bfloat16), residual.astype(jnp.bfloat16), weight, eps=eps)
    return y.astype(x.dtype), total.astype(x.dtype)
