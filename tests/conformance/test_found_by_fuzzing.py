"""What random programs found once: each stays right."""

import jax
import numpy as np
import pytest
from jax import lax

import m2ml
from m2ml.equivalence.measure import SECOND_LOOK, measured_bounds
from m2ml.staged import Staged


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


def test_what_a_perfect_rounding_decides_is_decided_by_rounding():
    """The logistic function of 13.5 is 1 in bfloat16, unless it is moved first."""

    def half(x):
        y = lax.convert_element_type(lax.logistic(x), np.float32)
        return lax.eq(y / (1 + y), np.float32(0.5))

    x = np.array([13.5, 2.5], "float32").astype(jax.numpy.bfloat16)
    report = m2ml.compare(half, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: jax.numpy.stack([lax.atan2(x, y)] * 2),  # what only moves numbers keeps the subnormal ones
        lambda x, y: lax.atan2(x * 0.5, y * 0.5),
        lambda x, y: lax.integer_pow(lax.cbrt(x), -2),
        lambda x, y: jax.numpy.tanh(lax.log(lax.abs(x)) / 64),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", jax.numpy.bfloat16], ids=str)
def test_what_a_formula_makes_of_subnormal_numbers_is_not_judged(function, dtype):
    x = np.array([-2.94e-39, 5.88e-39, 1.5]).astype(dtype)
    y = np.array([5.88e-39, 1e-40, -2.5]).astype(dtype)
    report = m2ml.compare(function, x, y, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable % 2 == 0 for backend in report.backends)  # 2 of each 3 at the most
    assert all(backend.outputs[0].unstable > 0 for backend in report.backends)


def test_below_the_least_normal_number_of_float16_functions_round_absolutely():
    """XLA's arcsine is twice an arc tangent, of which nothing is left at 2**-24."""

    def scaled(x):
        return jax.numpy.float32(4096) * lax.convert_element_type(lax.asin(x), np.float32)

    m2ml.compare(scaled, np.array([2.0**-24, 0.5], np.float16), backends=["cpu", "mlx"]).check()


def test_the_bits_of_a_computed_nan_are_decided_by_rounding():
    """MLX on a CPU leaves a signaling NaN as it is where it multiplies in float16."""

    def bits(x):
        return lax.bitcast_convert_type(x * jax.numpy.float16(0.75), np.uint8)

    x = np.array([0x7D44, 0x3C00], np.uint16).view(np.float16)
    report = m2ml.compare(bits, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable >= 2 for backend in report.backends)


def test_tangents_of_integers_are_nothing_to_an_engine():
    def tangent(x, count):
        nothing = np.zeros(count.shape, jax.dtypes.float0)
        return jax.jvp(lambda x, n: lax.optimization_barrier((x, n)), (x, count), (x, nothing))[1][0]

    m2ml.compare(tangent, np.ones(3, np.float32), np.arange(3, dtype=np.int32), backends=["cpu", "mlx"]).check()


def test_negative_powers_of_complex_infinities_are_not_judged():
    x = np.array([np.inf, complex(np.inf, 1), 1e13 + 1e13j, 1e-13 + 1e-13j, 2.0], np.complex64)
    report = m2ml.compare(lambda x: lax.integer_pow(x, -3), x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 4 for backend in report.backends)


def test_a_quotient_is_the_product_with_an_inverse_that_may_vanish():
    """XLA divides so by what a loop's body divides many numbers by."""

    def ones(rows):
        def body(carry, row):
            x = lax.broadcast_in_dim(row, (257,), ())
            return carry, lax.rev(x / (lax.abs(x) + 1), (0,))[254:]

        return lax.scan(body, (), rows)[1]

    m2ml.compare(ones, np.array([3.3e38, 2.0], np.float32), backends=["cpu", "mlx"]).check()


def test_subnormal_scalars_are_taken_for_zero_by_chance():
    def scalar(x):
        return lax.log(x) * 0.5, lax.atan2(x, x), lax.ne(x, np.float32(0))

    program = Staged(scalar).trace((np.float32(-1e-40),), {})
    bounds = measured_bounds(program, [np.array(-1e-40, np.float32)], runs=SECOND_LOOK)
    assert all(bound.unstable for bound in bounds)


def test_of_two_small_numbers_an_engine_may_take_one_for_zero():
    """XLA's logarithm of 1.4e-45 is minus infinity, of which nothing is left here, that of 1.2e-38 a number."""
    x = np.array([1.4e-45, 1.1754944e-38], np.float32)
    weights = (np.array([1, -1]) / np.sin(np.log(x.astype(np.float64)))).astype(np.float32)

    def nothing(x):
        y = lax.log(x)
        y = lax.select(lax.is_finite(y), y, np.zeros(y.shape, y.dtype))
        return lax.reduce_sum(weights * lax.sin(y), (0,))

    m2ml.compare(nothing, x, backends=["cpu", "mlx"]).check()


def test_what_the_sign_of_an_empty_sum_decides_is_decided_by_rounding():
    """MLX adds up the one -0 of a window to -0, XLA to 0, which it starts from."""

    def inverse(x):
        return 1 / lax.reduce_window(x, np.float32(0), lax.add, (2,), (2,), "VALID")

    x = np.array([-0.0, -0.0, 1.0, 3.0], np.float32)
    report = m2ml.compare(inverse, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)


def test_a_negative_power_is_one_over_a_power_that_may_overflow():
    def infinite(x):
        return lax.integer_pow(x, -2) * np.float16(np.inf)

    report = m2ml.compare(infinite, np.array([-300, 2], np.float16), backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)


def test_what_a_sum_makes_of_a_subnormal_number_may_be_zero():
    """XLA's sum of one logarithm is the number itself, and a subnormal one is 0 to what compares it."""

    def some(x):
        return lax.ne(lax.cumlogsumexp(x), jax.numpy.bfloat16(0))

    x = np.array([9.2e-41], jax.numpy.bfloat16)
    report = m2ml.compare(some, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)


def test_an_engine_may_take_a_subnormal_number_for_zero_in_one_place_and_not_in_another():
    """XLA's CPU finds -3e-39 equal to zero, and keeps it where nothing compares it."""

    def without_zeros(x):
        return lax.select(lax.ne(x, np.float32(0)), x, np.zeros(x.shape, x.dtype))

    def same(x):
        x = lax.convert_element_type(x, np.float32)
        return lax.eq_to_p.bind(without_zeros(x), without_zeros(x / (lax.abs(x) + np.float32(1))))

    x = np.array([-2.9e-39, 0.75], jax.numpy.bfloat16)
    report = m2ml.compare(same, x, backends=["cpu", "mlx"]).check()
    assert report.backends[0].outputs[0].unstable == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: lax.reduce_sum(x, (0,)),
        lambda x: jax.numpy.fft.fft(x.astype("complex64")).real[1],
        lambda x: x @ jax.numpy.ones(4),
    ],
)
def test_a_sum_that_overflows_in_some_order_of_its_terms_is_not_judged(function):
    """XLA and MLX give NaN for every element of the transform of equal numbers whose sum overflows."""
    x = np.array([3e38, 3e38, -3e38, -3e38], np.float32)
    report = m2ml.compare(function, x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)
    m2ml.compare(function, x / 8, backends=["cpu", "mlx"]).check()


@pytest.mark.parametrize("factors", [[1e30, 1e30, 1e-30], [1e-30, 1e-30, 1e30], [0.0, 1e30, 1e30]])
def test_a_product_that_overflows_or_vanishes_in_some_order_of_its_factors_is_not_judged(factors):
    x = np.array([factors, [2.0, 3.0, 4.0]], np.float32)
    report = m2ml.compare(lambda x: lax.reduce_prod(x, (1,)), x, backends=["cpu", "mlx"]).check()
    assert all(backend.outputs[0].unstable == 1 for backend in report.backends)
