"""Every function of jax.nn: values and gradients on mlx and cpu within the measured bound."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml

BACKENDS = ("cpu", "mlx")


def elementwise_and_axis_functions():
    """The functions of jax.nn whose one required argument is an array."""
    found = {}
    for name in dir(jax.nn):
        function = getattr(jax.nn, name)
        if name.startswith("_") or not callable(function) or inspect.isclass(function):
            continue
        required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if required in (["x"], ["a"]):
            found[name] = function
    return found


FUNCTIONS = elementwise_and_axis_functions()


def inputs(name):
    x = np.linspace(-6.2, 6.4, 24, dtype=np.float32).reshape(4, 6)
    return np.abs(x) + np.float32(0.05) if name == "log1mexp" else x


def test_the_functions_are_found():
    assert {"relu", "gelu", "silu", "softmax", "log_softmax", "logsumexp", "glu", "standardize"} <= set(FUNCTIONS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name, dtype):
    function, x = FUNCTIONS[name], jnp.asarray(inputs(name), dtype)

    def both(x, g):
        y, pull = jax.vjp(function, x)
        return y, pull(jnp.broadcast_to(g, y.shape).astype(y.dtype))[0]

    m2ml.compare(both, x, jnp.asarray(0.75, dtype), backends=BACKENDS).check()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name):
    x = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], [30.0, -30.0, 100.0, -100.0, 1e-6, -1e-6]], np.float32)
    m2ml.compare(FUNCTIONS[name], np.abs(x) if name == "log1mexp" else x, backends=BACKENDS).check()


@pytest.mark.parametrize("causal", [False, True])
def test_dot_product_attention(causal):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, heads, 4)).astype(np.float32) for heads in (4, 2, 2))

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    m2ml.compare(attend, q, k, v, backends=BACKENDS).check()
    m2ml.compare(jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2)), q, k, v, backends=BACKENDS).check()


def test_one_hot():
    m2ml.compare(lambda i: jax.nn.one_hot(i, 5), np.array([0, 4, 5, -1, 2]), backends=BACKENDS).check()


INITIALISERS = sorted(n for n in dir(jax.nn.initializers) if not n.startswith("_") and n != "Initializer")
#: Arguments of those that cannot be made without any.
ARGUMENTS = {"constant": (0.3,), "variance_scaling": (1.0, "fan_in", "normal")}


@pytest.mark.parametrize("name", INITIALISERS)
def test_initialisers(name):
    function = getattr(jax.nn.initializers, name)
    if name not in ("zeros", "ones"):
        function = function(*ARGUMENTS.get(name, ()))
    shape = (3, 3, 4, 4) if name == "delta_orthogonal" else (6, 5)
    m2ml.compare(
        lambda seed: function(jax.random.key(seed), shape, jnp.float32), np.uint32(1), backends=BACKENDS
    ).check()
