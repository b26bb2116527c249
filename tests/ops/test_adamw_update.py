"""`m2ml.ops.adamw` against Optax, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import m2ml
from m2ml.ops import adamw, adamw_update


def params():
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((4, 3)).astype("float32"), "b": [rng.standard_normal(3).astype("float32")]}


SETTINGS = {
    "defaults": {},
    "all settings": {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-2, "weight_decay": 0.3},
    "mask": {"weight_decay": 0.3, "mask": {"w": True, "b": False}},
    "mask of a function": {"weight_decay": 0.3, "mask": lambda p: jax.tree.map(lambda x: x.ndim > 1, p)},
    "no decay": {"weight_decay": 0.0},
}
RATES = {"number": 0.05, "schedule": optax.exponential_decay(0.1, 3, 0.5), "array": jnp.float32(0.05)}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_as_optax(settings, rate):
    def trained(make):
        tx, p = make(RATES[rate], **SETTINGS[settings]), params()
        state = tx.init(p)
        for _ in range(6):
            gradients = jax.grad(lambda p: sum(jnp.sum(jnp.sin(3 * x) ** 2) for x in jax.tree.leaves(p)))(p)
            updates, state = tx.update(gradients, state, p)
            p = optax.apply_updates(p, updates)
        return p, updates, optax.tree.get(state, "mu"), optax.tree.get(state, "nu")

    ours, theirs = trained(adamw), trained(optax.adamw)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), ours, theirs)


def test_numbers_may_be_injected():
    """``inject_hyperparams`` makes arrays of all numbers: Optax's own update runs."""

    def trained(make):
        tx, p = optax.inject_hyperparams(make)(learning_rate=0.1, weight_decay=0.3), params()
        state = tx.init(p)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(p, state, p)
            p = optax.apply_updates(p, updates)
        return p

    jax.tree.map(np.testing.assert_array_equal, trained(adamw), trained(optax.adamw))


def test_dtypes_are_kept():
    p = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params())
    tx = adamw(0.1, mu_dtype=jnp.float32)
    updates, state = tx.update(p, tx.init(p), p)
    assert {x.dtype.name for x in jax.tree.leaves((updates, state.nu))} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state.mu)} == {"float32"}
    assert int(state.count) == 1


@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_in_a_jitted_step(backend):
    tx, p = optax.chain(optax.clip_by_global_norm(1.0), adamw(0.1, mask={"w": True, "b": False})), params()

    @m2ml.jit(backend=backend)
    def step(p, state):
        updates, state = tx.update(p, state, p)
        return optax.apply_updates(p, updates), state

    got, expected = m2ml.get(step(p, tx.init(p))), jax.jit(step.staged.fn)(p, tx.init(p))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, expected)


def test_errors():
    p, count, rate = params(), np.int32(0), np.float32(0.1)
    tx = adamw(0.1)
    with pytest.raises(ValueError, match="adamw: update takes the current params"):
        tx.update(p, tx.init(p))
    with pytest.raises(ValueError, match=r"mu has the structure .* but params has"):
        adamw_update(p, {"w": p["w"]}, p, p, count, rate)
    with pytest.raises(ValueError, match=r"nu\['w'\] is \[3, 4\] but params\['w'\] is \[4, 3\]; they must be alike"):
        adamw_update(p, p, p | {"w": p["w"].T}, p, count, rate)
    with pytest.raises(TypeError, match=r"adamw_update: gradients\['w'\] is int32; it takes floating-point numbers"):
        adamw_update(p | {"w": p["w"].astype(np.int32)}, p, p, p, count, rate)
    with pytest.raises(TypeError, match="count is float32; it takes integers"):
        adamw_update(p, p, p, p, rate, rate)
    with pytest.raises(ValueError, match="decayed has 1 entries but params has 2 leaves"):
        adamw_update(p, p, p, p, count, rate, decayed=(True,))
    with pytest.raises(ValueError, match=r"adamw_update: count has 1 axes \[2\]; it takes count\[\]"):
        adamw_update(p, p, p, p, np.zeros(2, np.int32), rate)
