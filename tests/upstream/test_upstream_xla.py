"""Functions of complex numbers on XLA's CPU."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax


@pytest.mark.parametrize("name", ["sqrt", "asin", "acos", "acosh"])
@pytest.mark.xfail(strict=True, reason="jax 0.10.2: -0 beside a branch cut is taken for 0")
def test_beside_a_branch_cut_the_sign_of_zero_says_which_side(name: str) -> None:
    x, zero = np.float32([-2.0, -0.5, 30.0]), np.zeros(3, np.float32)
    above, below = (np.asarray(jax.jit(getattr(lax, name))(lax.complex(x, y))) for y in (zero, -zero))
    np.testing.assert_array_equal(below, np.conj(above))


@pytest.mark.xfail(strict=True, reason="jax 0.10.2: the quotient of two numbers taken for zero is NaN")
def test_the_angle_of_a_point_near_the_origin() -> None:
    y, x = np.float32([-2.9e-39, 5.9e-39, 1e-39]), np.float32([5.9e-39, 5.9e-39, -1e-39])
    assert not np.isnan(jax.jit(lax.atan2)(y, x)).any()
