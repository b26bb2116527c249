"""Gradients, jvp, vmap and their compositions of whole functions: mlx and cpu within the measured bound."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import m2ml
from m2ml.equivalence.conformance.functions import FUNCTIONS, REVERSE_ONLY, TRANSFORMS, values, with_own_vjp
from m2ml.equivalence.conformance.programs import newton

BACKENDS = ("cpu", "mlx")


def agree(fn, *args):
    return m2ml.compare(fn, *args, backends=BACKENDS).check()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda f: f.__name__)
def test_transforms_of_composite_functions(fn, transform):
    if fn is with_own_vjp and transform in REVERSE_ONLY:
        with pytest.raises(TypeError, match="forward-mode"):
            TRANSFORMS[transform](fn)(values(5))
        return
    agree(TRANSFORMS[transform](fn), values(3, 5) if "vmap" in transform else values(5))


# Control flow ---------------------------------------------------------------------------------------


def test_while_loops_and_their_forward_derivatives():
    agree(newton, jnp.float32(7.0))
    agree(lambda x: jax.jvp(newton, (x,), (jnp.ones_like(x),)), jnp.float32(7.0))
    agree(jax.vmap(newton), values(4, low=1.0, high=9.0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_scans(length, unroll, reverse):
    w = values(3, 3)

    def run(h, xs):
        return lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h.sum()), h, xs, reverse=reverse, unroll=unroll)

    agree(run, values(3), values(length, 3))
    agree(jax.grad(lambda h, xs: sum(jnp.sum(y**2) for y in run(h, xs)), (0, 1)), values(3), values(length, 3))


def test_a_scan_in_a_scan_with_a_cond_inside():
    def inner(c, x):
        return lax.cond(x > 0, lambda c: c * 0.9 + x, lambda c: c - x, c), c

    def outer(c, row):
        c, seen = lax.scan(inner, c, row)
        return c, seen.sum()

    agree(jax.grad(lambda x: lax.scan(outer, 0.0, x)[1].sum()), values(3, 4))


def test_associative_scans():
    agree(lambda x: lax.associative_scan(jnp.multiply, x, axis=1), values(2, 7))
    agree(jax.grad(lambda x: lax.associative_scan(jnp.add, x)[-1] ** 2), values(9))


def test_a_gradient_through_rematerialised_layers_in_a_scan():
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def layer(x, w):
        return jnp.tanh(x @ w), None

    agree(jax.grad(lambda w: lax.scan(layer, values(2, 4), w)[0].sum()), values(3, 4, 4))


def test_an_implicit_derivative():
    def root(a):
        return lax.custom_root(
            lambda x: x**3 + x - a,
            jnp.float32(1.0),
            lambda f, x: lax.fori_loop(0, 20, lambda _, v: v - f(v) / jax.grad(f)(v), x),
            lambda g, y: y / g(jnp.float32(1.0)),
        )

    agree(jax.value_and_grad(root), jnp.float32(3.0))


# Calls that the interpreter removes -----------------------------------------------------------------


@jax.custom_batching.custom_vmap
def negated(x):
    return -x


@negated.def_vmap
def _(size, batched, x):
    return 2 * x, batched[0]


def times(r, x):
    return r * x


CALLS = {
    "composite": lax.composite(lambda x: x * x + 1, "m2ml.square"),
    "copy": jnp.copy,
    "custom_vmap": negated,
    "vmap of custom_vmap": jax.vmap(negated),
    "linear_call": lambda x: jax.custom_derivatives.linear_call(times, times, x + 1, x),
    "named_call": jax.named_call(jnp.sin, name="wave"),
    "platform_dependent": lambda x: lax.platform_dependent(x, cpu=lax.neg, default=lax.abs),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    agree(CALLS[name], values(3, 4))


def test_a_custom_vjp_that_keeps_less():
    double = jax.custom_vjp(lambda x: x * 2)
    double.defvjp(lambda x: (x * 2, x), lambda x, g: (g * 2,), optimize_remat=True)
    agree(jax.grad(lambda x: jnp.sum(double(x) * x)), values(4))
