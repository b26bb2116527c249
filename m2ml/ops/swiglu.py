"""SiLU-gated linear unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.activations import silu
from m2ml.ops.arguments import require_floating, wide
from m2ml.ops.inputs import gated_rows, normal

Array = jax.Array


@op(shapes="gate[*b n], up[*b n] -> [*b n]")
def swiglu(gate: Array, up: Array, /) -> Array:
    """``silu(gate) * up`` with ``silu(x) = x sigmoid(x)`` (Shazeer, 2020): what LLaMA's MLP does between its matrices.

    ``gate`` and ``up`` are ``[*b, n]``; the result has their shape and the wider of their dtypes. Half precision is
    worked out in float32 and rounded once: the activation is not rounded before it is multiplied, unlike
    ``silu(gate) * up`` written in PyTorch or MLX. Raises TypeError where an array is not floating.
    """
    require_floating("swiglu", gate=gate, up=up)
    return (silu(wide(gate)) * wide(up)).astype(jnp.promote_types(gate.dtype, up.dtype))


@swiglu.give_samples
def samples() -> Iterator[Sample]:
    for name, gate, up in gated_rows():
        yield Sample(name, (gate, up))


@swiglu.law
def it_is_linear_in_up(op: Any, gate: Any, up: Any, **static: Any) -> None:
    np.testing.assert_array_equal(op(gate, -2 * up, **static), -2 * op(gate, up, **static))


@swiglu.law
def gates_of_both_signs_differ_by_the_gate(op: Any, gate: Any, up: Any, **static: Any) -> None:
    """silu(x) - silu(-x) = x."""
    if gate.dtype == np.float32:
        difference = op(gate, up) - op(-gate, up)
        np.testing.assert_allclose(difference, gate * up, rtol=1e-5, atol=1e-37)


@swiglu.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    y = op(np.array([0.0, np.log(3.0), 100.0], np.float32), np.array([5.0, 2.0, 3.0], np.float32))
    np.testing.assert_allclose(y, [0.0, 1.5 * np.log(3.0), 300.0], rtol=1e-6)


@swiglu.give_main
def main_sizes() -> Iterator[Sample]:
    yield Sample("64 rows of 4096", (normal((64, 4096)), normal((64, 4096), 1)))


swiglu.give_cost(lambda gate, up, **static: (5 * gate.size, 3 * gate.size * gate.dtype.itemsize))


@swiglu.fault
def arguments_exchanged(gate: Array, up: Array, /) -> Any:
    return swiglu.definition(up, gate)


@swiglu.fault
def sigmoid_alone(gate: Array, up: Array, /) -> Any:
    return jax.lax.logistic(gate) * up


@swiglu.fault
def gate_not_activated(gate: Array, up: Array, /) -> Any:
    return gate * up


@swiglu.fault
def both_activated(gate: Array, up: Array, /) -> Any:
    return silu(gate) * silu(up)


@swiglu.fault
def relu_for_silu(gate: Array, up: Array, /) -> Any:
    return jnp.maximum(gate, 0) * up


@swiglu.fault
def tail_not_multiplied(gate: Array, up: Array, /) -> Any:
    """The elements beyond a multiple of eight are the activation alone."""
    n = gate.shape[-1]
    return silu(gate) * jnp.where(jnp.arange(n) < n - n % 8, up, 1)


@swiglu.fault
def exponential_that_overflows(gate: Array, up: Array, /) -> Any:
    grown = jnp.exp(gate)
    return gate * grown / (1 + grown) * up


@swiglu.fault
def half_precision_inside(gate: Array, up: Array, /) -> Any:
    return swiglu.definition(gate.astype(jnp.bfloat16), up.astype(jnp.bfloat16)).astype(gate.dtype)
