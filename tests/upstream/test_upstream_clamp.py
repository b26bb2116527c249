"""Gradients of ``lax.clamp`` with respect to bounds that are scalars."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax

X = np.float32([[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]])


@pytest.mark.parametrize(("argument", "gradient"), [(0, 1.0), (2, 3.0)])
@pytest.mark.xfail(strict=True, raises=TypeError, reason="jax 0.10.2: select cases must have the same shapes")
def test_gradient_of_a_scalar_bound_counts_what_it_holds(argument, gradient) -> None:
    got = jax.grad(lambda *args: lax.clamp(*args).sum(), argument)(np.float32(1), X, np.float32(3))
    assert got == gradient
