"""Gradients, jvp, vmap and their compositions of whole functions: mlx and cpu within the measured bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import m2ml

BACKENDS = ("cpu", "mlx")


def agree(fn, *args):
    return m2ml.compare(fn, *args, backends=BACKENDS).check()


def values(*shape, seed=0, low=-1.5, high=1.5):
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape).astype(np.float32)


# Scalar functions of a vector of five, each through other families of primitives -------------------


def mlp(x):
    w = jnp.sin(jnp.arange(35.0)).reshape(5, 7)
    return jnp.sum(jax.nn.gelu(x @ w) ** 2)


def normalised(x):
    return jnp.sum(jax.nn.log_softmax(x) * jnp.cos(x)) + jax.nn.logsumexp(2 * x)


def attention(x):
    q = jnp.outer(x, jnp.arange(1.0, 4.0))
    return jnp.sum(jax.nn.softmax(q @ q.T) @ q)


def scanned(x):
    def body(carry, v):
        return jnp.tanh(carry * v + 0.3), carry * v

    last, all_ = lax.scan(body, jnp.float32(0.5), x)
    return last + jnp.sum(all_**2)


def looped(x):
    return jnp.sum(lax.fori_loop(0, 4, lambda i, v: jnp.sin(v) + 0.1 * i, x))


def branched(x):
    return lax.cond(x[0] > 0, lambda v: jnp.sum(v**3), lambda v: jnp.sum(jnp.exp(v)), x)


def switched(x):
    branches = [jnp.sum, lambda v: jnp.sum(v * v), lambda v: jnp.sum(jnp.cos(v))]
    return lax.switch(jnp.argmax(x) % 3, branches, x)


def mapped(x):
    return jnp.sum(lax.map(lambda v: jnp.log1p(v * v) * v, x))


def rematerialised(x):
    return jnp.sum(jax.checkpoint(lambda v: jnp.sin(jnp.exp(v)) * v)(x))


def indexed(x):
    picked = x[jnp.array([0, 3, 3, -1])]
    return jnp.sum(picked**2) + jnp.sum(x.at[jnp.array([1, 1])].add(picked[:2]) ** 2)


def sorted_(x):
    return jnp.sum(jnp.sort(x) * jnp.arange(5.0)) + lax.top_k(x, 2)[0][1]


def windowed(x):
    pooled = lax.reduce_window(x, -jnp.inf, lax.max, (3,), (1,), "SAME")
    return jnp.sum(pooled**2) + jnp.sum(lax.cumsum(x) ** 2) + jnp.prod(x)


def convolved(x):
    kernel = jnp.array([[[0.2, -0.5, 0.7]]])
    return jnp.sum(lax.conv_general_dilated(x[None, None], kernel, (2,), [(2, 1)], rhs_dilation=(2,)) ** 2)


def solved(x):
    a = jnp.outer(x, x) + 5 * jnp.eye(5)
    return jnp.sum(jnp.linalg.solve(a, x)) + jnp.linalg.slogdet(a)[1] + jnp.sum(jnp.linalg.cholesky(a))


def transformed(x):
    return jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2) + jnp.sum(jnp.fft.rfft(x).imag ** 2)


def special(x):
    return jnp.sum(
        jax.scipy.special.erf(x)
        + jax.scipy.special.erfc(x) * lax.bessel_i0e(x)
        + lax.erf_inv(x / 4)
        + jax.nn.softplus(x)
    )


@jax.custom_jvp
def with_own_jvp(x):
    return jnp.sum(jnp.log1p(jnp.exp(x)))


@with_own_jvp.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return with_own_jvp(x), jnp.sum(jax.nn.sigmoid(x) * t)


@jax.custom_vjp
def with_own_vjp(x):
    return jnp.sum(jnp.sin(x))


with_own_vjp.defvjp(lambda x: (with_own_vjp(x), jnp.cos(x)), lambda c, g: (g * c,))

FUNCTIONS = (
    *(mlp, normalised, attention, scanned, looped, branched, switched, mapped, rematerialised, indexed, sorted_),
    *(windowed, convolved, solved, transformed, special, with_own_jvp, with_own_vjp),
)

TRANSFORMS = {
    "value": lambda f: f,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "vmap": jax.vmap,
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "grad of vmap": lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(f)(x) ** 2)),
    "hessian": jax.hessian,
    "jacrev of grad": lambda f: jax.jacrev(jax.grad(f)),
}
#: jax defines no forward mode for a function with its own reverse mode.
REVERSE_ONLY = ("jvp", "hessian")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda f: f.__name__)
def test_transforms_of_composite_functions(fn, transform):
    if fn is with_own_vjp and transform in REVERSE_ONLY:
        with pytest.raises(TypeError, match="forward-mode"):
            TRANSFORMS[transform](fn)(values(5))
        return
    agree(TRANSFORMS[transform](fn), values(3, 5) if "vmap" in transform else values(5))


# Control flow ---------------------------------------------------------------------------------------


def newton(x):
    """A while loop whose number of steps depends on the data."""
    return lax.while_loop(lambda s: jnp.abs(s * s - x) > 1e-3, lambda s: 0.5 * (s + x / s), x + 1)


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
