"""The MLX engine: regions, what the host drives, dispatch and memory."""

import gc

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
from m2ml_mlx import regions
from m2ml_mlx.regions import HostStep, Partitioner, Region
from m2ml_mlx.rules import rules

import m2ml
from m2ml.errors import ExecutionError


def partition(fn, *args, strict=False):
    code = m2ml.jit(fn).program(*args).code
    return Partitioner(rules, compiled=False, strict=strict).partition(code)


X = np.arange(6, dtype=np.float32)


def test_a_program_without_control_flow_is_one_region():
    parts = partition(lambda x: jnp.tanh(x).sum() * 2, X).parts
    assert len(parts) == 1
    assert isinstance(parts[0], Region)


def test_control_flow_splits_a_program_and_its_bodies_are_partitioned_once():
    def fn(x):
        y = jax.lax.while_loop(lambda c: c.sum() < 100, lambda c: c * 2, jnp.exp(x))
        return jnp.log(y)

    parts = partition(fn, X).parts
    assert [type(p) for p in parts] == [Region, HostStep, Region]
    assert [body.single for body in parts[1].bodies] == [True, True]


def test_a_loop_builds_its_body_once(monkeypatch):
    built = []
    original = regions.graph_function

    def counting(*args):
        built.append(1)
        return original(*args)

    monkeypatch.setattr(regions, "graph_function", counting)
    fn = m2ml.jit(lambda x: jax.lax.scan(lambda c, v: (c + v, c * v), 0.0, x)).on("mlx")
    fn(np.ones(500, np.float32))
    assert len(built) <= 2


def test_what_depends_on_constants_only_is_computed_once():
    def fn(x):
        return jnp.where(jnp.tril(jnp.ones((6, 6), bool)), x, -jnp.inf)

    names = [step.equation.name for part in partition(fn, np.ones((6, 6), np.float32)).parts for step in part.steps]
    assert "iota" not in names
    assert "ge" not in names


def test_a_rule_that_gives_another_shape_is_caught_when_the_program_is_compiled(monkeypatch):
    monkeypatch.setitem(rules, "sin", lambda equation, x: mx.sin(x)[None])
    with pytest.raises(
        ExecutionError, match=r"the mlx rule of sin\(float32\[6\]\).*gives .*\(1, 6\).*the program says"
    ):
        m2ml.jit(jnp.sin).on("mlx")(X)


def test_a_rule_that_fails_names_the_equation_and_the_users_line(monkeypatch):
    def broken(equation, x):
        raise ValueError("no such thing")

    monkeypatch.setitem(rules, "sin", broken)
    with pytest.raises(
        ExecutionError, match=r"sin\(float32\[6\]\) at .*test_mlx_engine.py:\d+ .* failed: no such thing"
    ):
        m2ml.jit(lambda x: jnp.sin(x)).on("mlx")(X)


def test_explain_names_regions_host_steps_and_fallbacks():
    def fn(x):
        return jax.lax.fori_loop(0, x.shape[0], lambda i, c: c + i, 0), jax.lax.linalg.schur(jnp.diag(x))[0]

    with pytest.warns(m2ml.FallbackWarning):
        said = str(m2ml.jit(fn).on("mlx").explain(X))
    assert "driven by the host: " in said
    assert "schur" in said
    assert "on the CPU through JAX: schur(float32[6,6])" in said


def test_reducing_nothing_never_waits():
    fn = m2ml.jit(lambda x, y: (jnp.sum(x, axis=0) + y, jnp.max(x, axis=1), jnp.prod(x))).on("mlx")
    for _ in range(2000):
        total, _, product = m2ml.get(fn(np.zeros((0, 3), np.float32), np.float32(2)))
    assert total.tolist() == [2, 2, 2]
    assert product == 1


def test_donated_buffers_are_reused():
    """One state's worth of memory at the peak, not two: the state is far larger than anything else."""
    size = 1 << 22
    step = m2ml.jit(lambda state, x: (state * 0.5 + x, x.sum()), donate_argnames="state").on("mlx")
    state, _ = step(mx.ones((size,)), np.float32(1))
    m2ml.wait(state)
    gc.collect()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(3):
        state, loss = step(state, np.float32(1))
        m2ml.wait((state, loss))
    assert mx.get_peak_memory() - before < 4 * size


def test_reading_an_older_result_dispatches_the_newer_one(monkeypatch):
    """A decode step: the next is at work while the last token is read."""
    step = m2ml.jit(lambda state, x: (state + x, state.sum()), donate_argnames="state").on("mlx")
    state, first = step(mx.ones((3,)), np.float32(1))
    state, second = step(state, first)
    dispatched = []
    monkeypatch.setattr(mx, "async_eval", lambda arrays: dispatched.extend(map(id, arrays)))
    assert m2ml.get(first) == 3
    assert dispatched == [id(state), id(second)]
    assert m2ml.get(second) == 6


def test_small_results_are_computed_once_and_large_ones_again():
    def fn(x):
        return jnp.sin(x) + jnp.cos(x) * jnp.sin(x) - jnp.concatenate([jnp.sin(x), x[:0]])

    def sines(x):
        names = [step.equation.name for part in partition(fn, x).parts for step in part.steps]
        return names.count("sin"), names.count("concatenate")

    assert sines(X) == (1, 0)
    assert sines(np.zeros(5000, np.float32)) == (3, 0)
    m2ml.compare(fn, X, backends=["mlx"]).check()


def test_what_has_an_effect_has_it_every_time():
    seen = []

    def fn(x):
        for _ in range(2):
            jax.debug.callback(seen.append, x)
        return x + x

    m2ml.wait(m2ml.jit(fn).on("mlx")(np.float32(3)))
    assert len(seen) == 2


def test_rematerialised_code_is_not_merged_with_what_it_repeats():
    def fn(x):
        return jax.grad(lambda x: jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)).sum())(x))(x)

    names = [step.equation.name for part in partition(fn, X).parts for step in part.steps]
    assert "optimization_barrier" in names
    m2ml.compare(fn, X, backends=["mlx"]).check()


def test_the_arrays_of_a_call_can_be_read_by_another_thread():
    import threading

    out = m2ml.jit(lambda x: jnp.cumsum(x * 2)).on("mlx")(X)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(m2ml.get(out).tolist()))
    thread.start()
    thread.join()
    assert seen == [[0, 2, 6, 12, 20, 30]]


@pytest.mark.slow
def test_compiled_regions_give_the_same_numbers(monkeypatch):
    """The one place where the suite lets MLX compile: the figures must not depend on it."""
    import subprocess
    import sys

    code = """
import jax, jax.numpy as jnp, numpy as np, m2ml
def fn(x):
    y = jax.lax.scan(lambda c, v: (jnp.tanh(c + v), c * v), x[0], x)[1]
    return jax.nn.softmax(y * 2 + 1), jax.random.uniform(jax.random.key(0), (3,)) + y[0]
engine = m2ml.backends()["mlx"]
assert engine.compiled
m2ml.compare(fn, np.arange(6, dtype=np.float32), backends=["mlx"]).check()
print("agrees")
"""
    env = {k: v for k, v in __import__("os").environ.items() if k != "MLX_DISABLE_COMPILE"} | {"M2ML_MLX_COMPILE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "agrees", done.stderr


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.bool_])
@pytest.mark.parametrize("view", [np.flip, lambda x: x[:1, ::-1][::-1], np.transpose, lambda x: x[0, 0]])
def test_views_of_arrays_are_taken_as_they_look(view, dtype):
    array = view(np.arange(6).reshape(2, 3).astype(dtype))
    got = m2ml.get(m2ml.put(np.asarray(array), "mlx"))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, array)
