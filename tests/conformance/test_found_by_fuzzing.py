"""What random programs found once: each stays right."""

import jax
import numpy as np
import pytest
from jax import lax

import m2ml


def test_windows_wider_than_the_array_gather_nothing():
    def pooled(x):
        return lax.reduce_window(x, -np.inf, lax.max, (3, 1), (2, 1), "VALID", window_dilation=(3, 1))

    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    report = m2ml.compare(lambda x: jax.jvp(pooled, (x,), (x,)), x, backends=["cpu", "mlx"])
    assert report.check().ok
    assert m2ml.get(m2ml.jit(pooled, backend="mlx")(x)).shape == (0, 4)


@pytest.mark.parametrize("imaginary", [0.0, -0.0, 1.0])
def test_a_complex_expm1_that_overflows_stays_on_its_axis(imaginary):
    x = np.array([complex(1000, imaginary), complex(2e8, imaginary), complex(3, imaginary)], np.complex64)
    m2ml.compare(lax.expm1, x, backends=["cpu", "mlx"]).check()
    y = m2ml.get(m2ml.jit(lax.expm1, backend="reference")(x))
    assert not np.isnan(y).any()


def test_what_vanishes_in_float16_is_decided_by_rounding():
    """float16 has a smaller range than bfloat16: a conversion that keeps every bit may still give zero."""
    x = np.array([1e-12, 2.5], "float32").astype(jax.numpy.bfloat16)

    def remainder(x):
        y = lax.convert_element_type(x, np.float16)
        return lax.rem(y, y)

    report = m2ml.compare(remainder, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)


def test_numbers_that_bfloat16_makes_equal_are_decided_by_rounding():
    def equal(x):
        return lax.eq(lax.convert_element_type(x, jax.numpy.bfloat16), jax.numpy.bfloat16(1))

    x = np.array([1.001, 1.5], np.float32)
    report = m2ml.compare(equal, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)
