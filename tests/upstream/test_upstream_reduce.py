"""Gradients of JAX's general reductions that are defined and that JAX does not compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

X = np.float32([[1, 4, 2], [3, 0, 5]])
PLACES = np.int32([[0, 0, 0], [1, 1, 1]])


@pytest.mark.xfail(
    strict=True, raises=TypeError, reason="jax 0.10.2 reshapes the symbolic zero tangent of the integer operand"
)
def test_gradient_of_a_reduction_of_floats_beside_integers() -> None:
    def highest(x):
        values, _ = lax.reduce(
            (x, PLACES), (-jnp.inf, np.int32(0)), lambda a, b: (lax.max(a[0], b[0]), lax.min(a[1], b[1])), (0,)
        )
        return values.sum()

    np.testing.assert_array_equal(jax.grad(highest)(X), [[0, 1, 0], [1, 0, 1]])


@pytest.mark.xfail(strict=True, raises=TypeError, reason="jax 0.10.2 selects complex numbers by ge, which refuses them")
def test_gradient_of_the_largest_complex_number_of_a_window() -> None:
    def highest(x):
        return lax.reduce_window(x, -jnp.inf + 0j, lax.max, (1, 3), (1, 1), "VALID").real.sum()

    np.testing.assert_array_equal(jax.grad(highest)(X.astype(np.complex64)), [[0, 1, 0], [0, 0, 1]])
