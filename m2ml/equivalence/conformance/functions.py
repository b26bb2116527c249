"""Scalar functions of a vector, each through other families of primitives, and what JAX makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def values(*shape: int, seed: int = 0, low: float = -1.5, high: float = 1.5) -> np.ndarray[Any, Any]:
    """Float32 numbers between ``low`` and ``high``, the same for the same shape and seed."""
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape).astype(np.float32)


def mlp(x: Any) -> Any:
    w = jnp.sin(jnp.arange(35.0)).reshape(5, 7)
    return jnp.sum(jax.nn.gelu(x @ w) ** 2)


def normalised(x: Any) -> Any:
    return jnp.sum(jax.nn.log_softmax(x) * jnp.cos(x)) + jax.nn.logsumexp(2 * x)


def attention(x: Any) -> Any:
    q = jnp.outer(x, jnp.arange(1.0, 4.0))
    return jnp.sum(jax.nn.softmax(q @ q.T) @ q)


def scanned(x: Any) -> Any:
    def body(carry: Any, v: Any) -> Any:
        return jnp.tanh(carry * v + 0.3), carry * v

    last, all_ = lax.scan(body, jnp.float32(0.5), x)
    return last + jnp.sum(all_**2)


def looped(x: Any) -> Any:
    return jnp.sum(lax.fori_loop(0, 4, lambda i, v: jnp.sin(v) + 0.1 * i, x))


def branched(x: Any) -> Any:
    return lax.cond(x[0] > 0, lambda v: jnp.sum(v**3), lambda v: jnp.sum(jnp.exp(v)), x)


def switched(x: Any) -> Any:
    branches = [jnp.sum, lambda v: jnp.sum(v * v), lambda v: jnp.sum(jnp.cos(v))]
    return lax.switch(jnp.argmax(x) % 3, branches, x)


def mapped(x: Any) -> Any:
    return jnp.sum(lax.map(lambda v: jnp.log1p(v * v) * v, x))


def rematerialised(x: Any) -> Any:
    return jnp.sum(jax.checkpoint(lambda v: jnp.sin(jnp.exp(v)) * v)(x))


def indexed(x: Any) -> Any:
    picked = x[jnp.array([0, 3, 3, -1])]
    return jnp.sum(picked**2) + jnp.sum(x.at[jnp.array([1, 1])].add(picked[:2]) ** 2)


def sorted_(x: Any) -> Any:
    return jnp.sum(jnp.sort(x) * jnp.arange(5.0)) + lax.top_k(x, 2)[0][1]


def windowed(x: Any) -> Any:
    pooled = lax.reduce_window(x, -jnp.inf, lax.max, (3,), (1,), "SAME")
    return jnp.sum(pooled**2) + jnp.sum(lax.cumsum(x) ** 2) + jnp.prod(x)


def convolved(x: Any) -> Any:
    kernel = jnp.array([[[0.2, -0.5, 0.7]]])
    return jnp.sum(lax.conv_general_dilated(x[None, None], kernel, (2,), [(2, 1)], rhs_dilation=(2,)) ** 2)


def solved(x: Any) -> Any:
    a = jnp.outer(x, x) + 5 * jnp.eye(5)
    return jnp.sum(jnp.linalg.solve(a, x)) + jnp.linalg.slogdet(a)[1] + jnp.sum(jnp.linalg.cholesky(a))


def transformed(x: Any) -> Any:
    return jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2) + jnp.sum(jnp.fft.rfft(x).imag ** 2)


def special(x: Any) -> Any:
    return jnp.sum(
        jax.scipy.special.erf(x)
        + jax.scipy.special.erfc(x) * lax.bessel_i0e(x)
        + lax.erf_inv(x / 4)
        + jax.nn.softplus(x)
    )


@jax.custom_jvp
def with_own_jvp(x: Any) -> Any:
    return jnp.sum(jnp.log1p(jnp.exp(x)))


@with_own_jvp.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return with_own_jvp(x), jnp.sum(jax.nn.sigmoid(x) * t)


@jax.custom_vjp
def with_own_vjp(x: Any) -> Any:
    return jnp.sum(jnp.sin(x))


with_own_vjp.defvjp(lambda x: (with_own_vjp(x), jnp.cos(x)), lambda c, g: (g * c,))

FUNCTIONS = (
    *(mlp, normalised, attention, scanned, looped, branched, switched, mapped, rematerialised, indexed, sorted_),
    *(windowed, convolved, solved, transformed, special, with_own_jvp, with_own_vjp),
)

TRANSFORMS: Mapping[str, Callable[[Any], Any]] = {
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
