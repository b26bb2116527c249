"""Scaled random numbers are contracted as XLA contracts them, and nothing else is."""

import jax
import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml.interpreter import Rules, apply_rule, flatten


def names(fn, *args):
    return [step.equation.name for step in flatten(jax.make_jaxpr(fn)(*args)).steps]


def uniform(low, high):
    return lambda seed: jax.random.uniform(jax.random.key(seed), (5,), minval=low, maxval=high)


def test_a_uniform_number_in_a_range_is_one_equation():
    found = names(uniform(-2, 3), 0)
    assert found.count("multiply_add") == 1
    assert "add" not in found[found.index("multiply_add") :]


def test_other_sums_of_products_stay_two_equations():
    x = np.ones(3, np.float32)
    assert names(lambda a, b, c: a * b + c, x, x, x) == ["mul", "add"]


def test_a_product_that_is_read_twice_stays():
    def both(bits):
        u = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0
        scaled = u * 3.0
        return scaled, scaled + 2.0

    assert names(both, np.zeros(3, np.uint32)) == ["bitcast_convert_type", "sub", "mul", "add"]


def test_two_constant_factors_of_a_normal_number_are_multiplied_first():
    def weights(seed):
        return jax.nn.initializers.normal(0.3)(jax.random.key(seed), (4,))

    steps = flatten(jax.make_jaxpr(weights)(0)).steps
    products = [step.equation.shape for step in steps if step.equation.name == "mul"]
    assert products[-2:] == [(), (4,)]


def test_a_factor_that_is_an_argument_stays():
    def scaled(u, scale):
        return scale * (jnp.float32(1.4142135) * jax.lax.erf_inv(u))

    shapes = [s.equation.shape for s in flatten(jax.make_jaxpr(scaled)(np.zeros(4, np.float32), 2.0)).steps]
    assert shapes.count((4,)) == 3


def test_a_table_without_multiply_add_runs_the_product_and_the_sum():
    rules = Rules(mul=lambda equation, x, y: x * y, add=lambda equation, x, y: x + y)
    steps = flatten(jax.make_jaxpr(uniform(-2, 3))(0)).steps
    equation = next(step.equation for step in steps if step.equation.name == "multiply_add")
    u, width, low = np.arange(5, dtype=np.float32) / 8, np.array([5], np.float32), np.array([-2], np.float32)
    np.testing.assert_array_equal(apply_rule(rules, equation, [u, width, low])[0], u * width + low)
    np.testing.assert_array_equal(equation.bind(u, width, low)[0], u * width + low)


def test_a_random_number_in_a_range_is_rounded_once():
    u = np.asarray(jax.random.uniform(jax.random.key(3), (4096,)), np.float64)
    drawn = m2ml.jit(lambda seed: jax.random.uniform(jax.random.key(seed), (4096,), minval=-2, maxval=3))
    for backend in ("reference", "cpu", "mlx"):
        np.testing.assert_array_equal(m2ml.get(drawn.on(backend)(3)), (5 * u - 2).astype(np.float32))
