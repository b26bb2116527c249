"""JAX's Hurwitz zeta function, and with it the derivatives of digamma, far below zero."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.special
from jax import lax

X = np.float32([-20.3, -12.7, -8.280791])


@pytest.mark.xfail(
    strict=True,
    reason="jax 0.10.2 sums nine terms wherever it starts, and then uses a series for large positive numbers: "
    "zeta(2, -20.3) is -0.05, not 15.03",
)
def test_zeta_of_negative_numbers() -> None:
    got = lax.zeta(np.full_like(X, 2), X)
    np.testing.assert_allclose(got, scipy.special.zeta(2.0, X.astype(np.float64)), rtol=1e-4)


@pytest.mark.xfail(strict=True, reason="jax 0.10.2: the derivative of digamma is its zeta function; -0.05 at -20.3")
def test_digamma_increases_between_its_poles() -> None:
    assert (jax.vmap(jax.grad(lax.digamma))(X) > 0).all()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.xfail(strict=True, reason="jax 0.10.2: polygamma is a factorial times its zeta function")
def test_derivatives_of_digamma_of_negative_numbers(order: int) -> None:
    got = lax.polygamma(np.full_like(X, order), X)
    np.testing.assert_allclose(got, scipy.special.polygamma(order, X.astype(np.float64)), rtol=1e-3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_they_are_wrong_by_nothing_else(order: int) -> None:
    zeta = np.asarray(lax.zeta(np.full_like(X, order + 1), X))
    got = lax.polygamma(np.full_like(X, order), X)
    np.testing.assert_allclose(got, -((-1.0) ** order) * math.factorial(order) * zeta, rtol=1e-5)
