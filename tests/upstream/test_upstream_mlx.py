"""Functions of MLX on a CPU that lose a NaN, a small number or a step."""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.xfail(strict=True, reason="MLX 0.32.4: the sign of NaN is 0")
def test_sign_of_nan_is_nan() -> None:
    assert np.isnan(np.array(mx.sign(mx.array([float("nan")]), stream=mx.cpu)))


@pytest.mark.xfail(strict=True, reason="MLX 0.32.4: the sign of -0 is 0")
def test_sign_of_minus_zero_is_minus_zero() -> None:
    assert np.signbit(np.array(mx.sign(mx.array([-0.0]), stream=mx.cpu)))


@pytest.mark.parametrize("x", [1e-10, 1e-5])
@pytest.mark.xfail(strict=True, reason="MLX 0.32.4: erf has no relative accuracy near 0 on a CPU: erf(1e-10) is 0")
def test_erf_near_zero(x) -> None:
    expected = 2 / np.sqrt(np.pi) * x
    np.testing.assert_allclose(np.array(mx.erf(mx.array([x]), stream=mx.cpu)), expected, rtol=1e-6)


@pytest.mark.xfail(strict=True, reason="MLX 0.32.4: arange adds steps in bfloat16 and stands still at 256")
def test_arange_in_bfloat16_rounds_each_number_once() -> None:
    got = np.array(mx.arange(0, 300, 1, dtype=mx.bfloat16, stream=mx.cpu).astype(mx.float32))
    np.testing.assert_array_equal(got, np.arange(300).astype(ml_dtypes.bfloat16).astype(np.float32))
