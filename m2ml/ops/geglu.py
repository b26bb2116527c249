"""GELU-gated linear unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.activations import gelu, gelu_tanh
from m2ml.ops.arguments import require_floating, require_one_of, wide
from m2ml.ops.inputs import gated_rows

Array = jax.Array

_FORMULAS = {"none": gelu, "tanh": gelu_tanh}


@op(shapes="gate[*b n], up[*b n] -> [*b n]")
def geglu(gate: Array, up: Array, /, *, approximate: str = "none") -> Array:
    """``gelu(gate) * up`` with ``gelu(x) = x Phi(x)`` (Shazeer, 2020; Hendrycks and Gimpel, 2016).

    ``gate`` and ``up`` are ``[*b, n]``; the result has their shape and the wider of their dtypes. ``approximate`` is as
    in PyTorch: ``"none"`` takes the normal distribution function, ``"tanh"`` its approximation ``x / 2 (1 +
    tanh(sqrt(2 / pi) (x + 0.044715 x**3)))``, which is what ``jax.nn.gelu`` does by default. Both keep the left tail,
    where ``1 + erf`` and ``1 + tanh`` cancel. Half precision is worked out in float32 and rounded once. Raises
    TypeError where an array is not floating and ValueError for another ``approximate``.
    """
    require_floating("geglu", gate=gate, up=up)
    require_one_of("geglu", "approximate", approximate, _FORMULAS)
    return (_FORMULAS[approximate](wide(gate)) * wide(up)).astype(jnp.promote_types(gate.dtype, up.dtype))


@geglu.give_samples
def samples() -> Iterator[Sample]:
    for i, (name, gate, up) in enumerate(gated_rows()):
        yield Sample(f"{name}, exact", (gate, up))
        if i % 2:
            yield Sample(f"{name}, tanh", (gate, up), {"approximate": "tanh"})


@geglu.law
def it_is_linear_in_up(op: Any, gate: Any, up: Any, **static: Any) -> None:
    np.testing.assert_array_equal(op(gate, -2 * up, **static), -2 * op(gate, up, **static))


@geglu.law
def gates_of_both_signs_differ_by_the_gate(op: Any, gate: Any, up: Any, **static: Any) -> None:
    """gelu(x) - gelu(-x) = x, by either formula."""
    if gate.dtype == np.float32:
        difference = op(gate, up, **static) - op(-gate, up, **static)
        np.testing.assert_allclose(difference, gate * up, rtol=1e-5, atol=1e-37)


@geglu.law
def worked_numbers(op: Any, *args: Any, **static: Any) -> None:
    gate, up = np.array([0.0, 1.0, -4.0], np.float32), np.array([5.0, 2.0, 1.0], np.float32)
    np.testing.assert_allclose(op(gate, up), [0, 2 * 0.8413447461, -4 * 3.1671241833e-05], rtol=1e-5)
    np.testing.assert_allclose(op(gate, up, approximate="tanh"), [0, 2 * 0.8411919906, -7.02459482e-05], rtol=1e-5)


geglu.give_cost(lambda gate, up, **static: (10 * gate.size, 3 * gate.size * gate.dtype.itemsize))


@geglu.fault
def approximate_ignored(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    return geglu.definition(gate, up)


@geglu.fault
def always_approximate(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    return geglu.definition(gate, up, approximate="tanh")


@geglu.fault
def arguments_exchanged(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    return geglu.definition(up, gate, approximate=approximate)


@geglu.fault
def gate_not_activated(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    return gate * up


@geglu.fault
def the_tail_cancels(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    exact = 0.5 * gate * (1 + jax.lax.erf(gate * np.float32(np.sqrt(0.5)))) * up
    return exact if approximate == "none" else geglu.definition(gate, up, approximate=approximate)


@geglu.fault
def sigmoid_approximation(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    return gate * jax.lax.logistic(1.702 * gate) * up


@geglu.fault
def tail_not_multiplied(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    """The elements beyond a multiple of eight are the activation alone."""
    n = gate.shape[-1]
    return geglu.definition(gate, jnp.where(jnp.arange(n) < n - n % 8, up, 1), approximate=approximate)


@geglu.fault
def half_precision_inside(gate: Array, up: Array, /, *, approximate: str = "none") -> Any:
    narrow = geglu.definition(gate.astype(jnp.bfloat16), up.astype(jnp.bfloat16), approximate=approximate)
    return narrow.astype(gate.dtype)
