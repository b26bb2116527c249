"""Whole programs: control flow, mixed dtypes, indices out of range, and models that are trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from m2ml.equivalence.conformance.functions import values
from m2ml.equivalence.conformance.suite import Check, Subject, checks_of


def checks(subject: Subject) -> Iterable[Check]:
    for reverse in (False, True):
        for length in (0, 1, 7):
            name = f"scan of {length} steps{', reversed' if reverse else ''}"
            yield Check("programs", name, functools.partial(_scan, length=length, reverse=reverse))
    functions = (while_loops, branches, loops_in_loops, mapped_loops, typed_keys_in_a_loop, associative_scans)
    more = (mixed_dtypes, indices_out_of_range, empty_arrays, integers_wrap_around, calls_of_every_kind)
    models = (gpt_forward, gpt_train_step, cnn_train_step)
    yield from checks_of("programs", (*functions, *more, *models))


# Control flow ---------------------------------------------------------------------------------------


def _scan(subject: Subject, *, length: int, reverse: bool) -> None:
    w = values(3, 3)

    def run(h: Any, xs: Any) -> Any:
        return lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h.sum()), h, xs, reverse=reverse)

    subject.agree(run, values(3), values(length, 3))
    subject.agree(jax.grad(lambda h, xs: sum(jnp.sum(y**2) for y in run(h, xs)), (0, 1)), values(3), values(length, 3))


def newton(x: Any) -> Any:
    """A while loop whose number of steps depends on the data."""
    return lax.while_loop(lambda s: jnp.abs(s * s - x) > 1e-3, lambda s: 0.5 * (s + x / s), x + 1)


def while_loops(subject: Subject) -> None:
    subject.agree(newton, np.float32(7.0))
    subject.agree(lambda x: lax.while_loop(lambda s: s[0] < 0, lambda s: (s[0] + 1, s[1] * 2), (x, x)), np.float32(1))
    subject.agree(lambda x: jax.jvp(newton, (x,), (jnp.ones_like(x),)), np.float32(7.0))


def branches(subject: Subject) -> None:
    """``cond`` both ways, and ``switch`` with indices that are clamped."""
    three = [jnp.sin, lambda v: v * v, lambda v: -v]
    for i in (-1, 0, 2, 9):
        subject.agree(lambda i, x: lax.switch(i, three, x), np.int32(i), values(4))
    for x in (values(4), -values(4)):
        subject.agree(jax.grad(lambda v: lax.cond(v[0] > 0, jnp.sum, lambda u: jnp.sum(u**3), v)), x)


def loops_in_loops(subject: Subject) -> None:
    def inner(c: Any, x: Any) -> Any:
        return lax.cond(x > 0, lambda c: c * 0.9 + x, lambda c: c - x, c), c

    def outer(c: Any, row: Any) -> Any:
        c, seen = lax.scan(inner, c, row)
        return c, seen.sum()

    subject.agree(jax.grad(lambda x: lax.scan(outer, 0.0, x)[1].sum()), values(3, 4))


def mapped_loops(subject: Subject) -> None:
    """vmap of a while loop: a predicate per element."""
    subject.agree(jax.vmap(newton), values(4, low=1.0, high=9.0))
    subject.agree(jax.vmap(lambda i, x: lax.fori_loop(0, i, lambda _, v: v * 1.5, x)), np.arange(3), values(3))


def typed_keys_in_a_loop(subject: Subject) -> None:
    def step(key: Any, _: Any) -> Any:
        key, use = jax.random.split(key)
        return key, jax.random.uniform(use, (2,))

    subject.agree(lambda seed: lax.scan(step, jax.random.key(seed), length=3)[1], np.uint32(5))


def associative_scans(subject: Subject) -> None:
    subject.agree(lambda x: lax.associative_scan(jnp.multiply, x, axis=1), values(2, 7))


# Values ---------------------------------------------------------------------------------------------


def mixed_dtypes(subject: Subject) -> None:
    def fn(x: Any, i: Any, half: Any) -> Any:
        scaled = (x.astype(jnp.bfloat16) * half).astype(jnp.float32) + i
        return scaled, scaled > 0, scaled.astype(jnp.int32) // jnp.where(i == 0, 1, i), scaled.mean()

    subject.agree(fn, values(5, low=-9, high=9), np.arange(5, dtype=np.int32), values(5).astype(jnp.bfloat16))


def indices_out_of_range(subject: Subject) -> None:
    """Reads are clamped or filled and writes dropped, as JAX says; no index may end the process."""
    x, wild = values(5), np.array([0, -1, 4, 5, -6, 2**31 - 1, -(2**31)], np.int32)
    for mode in ("clip", "fill", "promise_in_bounds"):
        indices = np.array([0, 4, 2], np.int32) if mode == "promise_in_bounds" else wild
        subject.agree(lambda x, i, m=mode: x.at[i].get(mode=m), x, indices)
    subject.agree(lambda x, i: x.at[i].add(1.0, mode="drop"), x, wild)
    subject.agree(lambda x, i: lax.dynamic_slice(x, (i[5],), (2,)), x, wild)
    subject.agree(lambda x, i: lax.dynamic_update_slice(x, x[:2] * 2, (i[6],)), x, wild)


def empty_arrays(subject: Subject) -> None:
    subject.agree(lambda x: (x.sum(0), x @ x.T, jnp.concatenate([x, x]), x.T, jnp.sort(x, 0)), values(0, 3))
    subject.agree(lambda x: (x @ x.T, x.max(0, initial=-1.0), jax.nn.softmax(x)), values(3, 0))


def integers_wrap_around(subject: Subject) -> None:
    ends = np.array([2**31 - 1, -(2**31), 1, 0, -1, 7], np.int32)
    subject.agree(lambda x: (x + 1, x * 3, -x, jnp.abs(x), x // 3, x % 3, x << 1, x >> 1, x.astype(jnp.uint8)), ends)
    subject.agree(lambda x, y: (lax.div(x, y), lax.rem(x, y)), ends, np.array([-1, -1, 0, 0, 3, -2], np.int32))


def calls_of_every_kind(subject: Subject) -> None:
    """What tracing leaves behind: nested jit, remat, custom rules, named calls, platform-dependent branches."""
    subject.agree(jax.jit(lambda x: jax.jit(jnp.sin)(x) + 1), values(3))
    subject.agree(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.exp(x))))), values(3))
    subject.agree(jax.named_call(jnp.sin, name="wave"), values(3))
    subject.agree(lambda x: lax.platform_dependent(x, cpu=lax.neg, default=lax.neg), values(3))


# Models ---------------------------------------------------------------------------------------------


def _tokens() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 11, (2, 8)).astype(np.int32)


@functools.cache
def _gpt() -> tuple[Any, Any]:
    from m2ml.models import GPT, GPTConfig, functional

    model = functional(GPT, GPTConfig(vocab_size=11, context=8, layers=1, heads=2, embed_dim=8))
    return model, jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


def gpt_forward(subject: Subject) -> None:
    model, params = _gpt()
    subject.agree(lambda p, tokens: model.apply(p, tokens), params, _tokens())


def train_step(apply: Callable[..., Any]) -> Callable[..., Any]:
    """One step of Adam on the cross-entropy of ``apply(params, x)`` to integer targets."""
    import optax

    tx = optax.adam(1e-2)

    def step(params: Any, x: Any, targets: Any) -> Any:
        def loss(p: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(apply(p, x), targets).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), state, value

    return step


def gpt_train_step(subject: Subject) -> None:
    model, params = _gpt()
    subject.agree(train_step(model.apply), params, _tokens(), _tokens()[:, ::-1])


def cnn_train_step(subject: Subject) -> None:
    from m2ml.models import CNN, CNNConfig, functional

    model = functional(CNN, CNNConfig(height=8, width=8, features=(4, 4), hidden_dim=8))
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
    subject.agree(train_step(model.apply), params, values(2, 8, 8, 1), np.array([3, 7]))
