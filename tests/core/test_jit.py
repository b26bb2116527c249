"""m2ml.jit: jax.jit's manners on every backend."""

import functools
import threading
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import m2ml

BACKENDS = tuple(m2ml.backends())


def test_every_backend_of_this_repository_that_can_run_on_linux_runs_here():
    assert set(BACKENDS) >= {"cpu", "mlx", "reference"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def square_sum(tree, *, scale=1.0):
    return {"total": sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)) * scale, "same": tree}


def test_trees_keywords_and_scalars(backend):
    fn = m2ml.jit(square_sum).on(backend)
    out = m2ml.get(fn({"a": np.arange(3, dtype=np.float32), "b": [2.0, None]}, scale=3))
    assert out["total"] == 27
    np.testing.assert_array_equal(out["same"]["a"], [0, 1, 2])
    assert out["same"]["b"][1] is None


def test_results_are_the_backends_own_arrays(backend):
    out = m2ml.jit(lambda x: x + 1).on(backend)(np.ones(2, np.float32))
    assert m2ml.backends()[backend].owns(out)


@pytest.mark.parametrize("origin", BACKENDS)
def test_leaves_may_come_from_any_backend(backend, origin):
    x = m2ml.put(np.arange(4, dtype=np.float32), origin)
    out = m2ml.jit(lambda x, y: x * y).on(backend)(x, jnp.full(4, 2.0))
    np.testing.assert_array_equal(m2ml.get(out), [0, 2, 4, 6])


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32", "complex64"]
)
def test_put_and_get_keep_values_and_dtypes(backend, dtype):
    x = np.array([[0, 1, 2], [3, 4, 5]]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    back = m2ml.get(m2ml.put({"x": x, "empty": x[:0], "scalar": x[1, 1]}, backend))
    assert back["x"].dtype == x.dtype
    np.testing.assert_array_equal(back["x"], x)
    assert back["empty"].shape == (0, 3)
    assert back["scalar"].shape == ()


def test_zero_size_and_zero_dimensional_leaves(backend):
    fn = m2ml.jit(lambda x, y: (jnp.sum(x, axis=0) + y, x.reshape(-1))).on(backend)
    total, flat = m2ml.get(fn(np.zeros((0, 3), np.float32), np.float32(2)))
    np.testing.assert_array_equal(total, [2, 2, 2])
    assert flat.shape == (0,)


def test_static_arguments_by_position_and_by_name(backend):
    @m2ml.jit(static_argnames=("n", "how"))
    def fn(n, x, *, how="up"):
        return jnp.ones(n) * x if how == "up" else jnp.zeros(n) * x

    on = fn.on(backend)
    np.testing.assert_array_equal(m2ml.get(on(2, 3.0)), [3, 3])
    np.testing.assert_array_equal(m2ml.get(on(x=3.0, n=1)), [3])
    np.testing.assert_array_equal(m2ml.get(on(2, 3.0, how="down")), [0, 0])


def test_a_function_is_traced_once_per_shape(backend):
    traced = []

    @m2ml.jit
    def fn(x):
        traced.append(x.shape)
        return x + 1

    on = fn.on(backend)
    for shape in ((2,), (2,), (3,), (2,)):
        on(on(np.zeros(shape, np.float32)))
    assert traced == [(2,), (3,)]


def test_jit_inside_jit_and_inside_transformations(backend):
    inner = m2ml.jit(lambda x: jnp.sin(x) * x).on(backend)
    outer = m2ml.jit(lambda x: jax.grad(inner)(x) + jax.vmap(inner)(jnp.ones(3)).sum()).on(backend)
    x = 0.5
    expected = np.sin(x) + x * np.cos(x) + 3 * np.sin(1.0)
    assert abs(float(m2ml.get(outer(x))) - expected) <= 8 * np.finfo(np.float32).eps * abs(expected)


def test_results_feed_back_without_leaving_the_backend(backend):
    step = m2ml.jit(lambda state: {"w": state["w"] * 0.5, "n": state["n"] + 1}, donate_argnames="state").on(backend)
    state = {"w": np.float32(8), "n": np.int32(0)}
    for _ in range(3):
        state = step(state)
    assert m2ml.get(state) == {"w": 1.0, "n": 3}


def test_typed_random_keys_pass_in_and_out(backend):
    fn = m2ml.jit(lambda key: (jax.random.split(key), jax.random.uniform(key, (3,)))).on(backend)
    key = jax.random.key(7)
    keys, values = fn(key)
    again, _ = fn(keys[0] if isinstance(keys, jax.Array) else m2ml.get(keys)[0])
    np.testing.assert_array_equal(jax.random.key_data(m2ml.get(keys)), jax.random.key_data(jax.random.split(key)))
    np.testing.assert_array_equal(m2ml.get(values), jax.random.uniform(key, (3,)))
    expected = jax.random.key_data(jax.random.split(jax.random.split(key)[0]))
    np.testing.assert_array_equal(jax.random.key_data(m2ml.get(again)), expected)


def test_keys_held_by_a_backend_are_accepted_back(backend):
    advance = m2ml.jit(lambda key: jax.random.fold_in(key, 1)).on(backend)
    twice = advance(advance(jax.random.key(0)))
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 1)
    np.testing.assert_array_equal(jax.random.key_data(m2ml.get(twice)), jax.random.key_data(expected))


class Counter(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.value = self.calls.value + 1
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:'.value':DeprecationWarning")
def test_whole_modules_are_updated_in_place(backend):
    model = Counter(nnx.Rngs(0))
    fn = m2ml.jit(lambda m, x, *, bias=0.0: m(x) + bias).on(backend)
    x = np.ones((1, 2), np.float32)
    first = m2ml.get(fn(model, x))
    second = m2ml.get(fn(model, x, bias=1.0))
    assert int(m2ml.get(model.calls.value)) == 2
    assert np.all(np.abs(second - first - 1) <= 4 * np.finfo(np.float32).eps)


@pytest.mark.filterwarnings("ignore:'.value':DeprecationWarning")
def test_modules_and_static_arguments_go_together(backend):
    model = Counter(nnx.Rngs(0))

    @m2ml.jit(static_argnames=("scale", "train"))
    def fn(scale, m, x, *, train):
        return m(x) * scale if train else x

    x = np.ones((1, 2), np.float32)
    trained = m2ml.get(fn.on(backend)(2, model, x, train=True))
    assert trained.shape == (1, 2)
    np.testing.assert_array_equal(m2ml.get(fn.on(backend)(2, model, x, train=False)), x)
    assert int(m2ml.get(model.calls.value)) == 1


def test_split_modules_are_plain_trees(backend):
    graph, state = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    fn = m2ml.jit(lambda state, x: nnx.merge(graph, state)(x)).on(backend)
    assert m2ml.get(fn(state, np.ones((4, 2), np.float32))).shape == (4, 3)


def test_methods_bind_their_instance():
    class Model:
        weight = 3.0

        @functools.partial(m2ml.jit, static_argnames="self")
        def scale(self, x):
            return x * self.weight

    assert float(Model().scale(jnp.float32(2))) == 6


def test_threads_share_a_function_and_its_results(backend):
    fn = m2ml.jit(lambda x: jnp.cumsum(x * 2)).on(backend)
    start = fn(np.ones(8, np.float32))
    results, failures = {}, []

    def work(index):
        try:
            value = start
            for _ in range(5):
                value = fn(value) / 1 if backend == "reference" else fn(value)
            results[index] = m2ml.get(value)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = np.ones(8)
    for _ in range(6):
        expected = np.cumsum(expected * 2)
    for result in results.values():
        np.testing.assert_array_equal(result, expected)


def test_control_flow_with_values_only_known_at_run_time(backend):
    def collatz(n):
        def body(carry):
            n, steps = carry
            return jax.lax.cond(n % 2 == 0, lambda n: n // 2, lambda n: 3 * n + 1, n), steps + 1

        return jax.lax.while_loop(lambda carry: carry[0] != 1, body, (n, 0))[1]

    assert int(m2ml.get(m2ml.jit(collatz).on(backend)(27))) == 111


def test_scan_of_a_thousand_steps_is_looped(backend):
    def fn(xs):
        return jax.lax.scan(lambda c, x: (c + x, c), jnp.int32(0), xs)

    last, sums = m2ml.get(m2ml.jit(fn).on(backend)(np.arange(1000, dtype=np.int32)))
    assert last == 499500
    np.testing.assert_array_equal(sums, np.concatenate([[0], np.cumsum(np.arange(999))]))


def test_switch_scan_in_reverse_and_empty_scan(backend):
    def fn(i, xs):
        chosen = jax.lax.switch(i, [lambda x: x, lambda x: -x, lambda x: x * 10], xs)
        carry, ys = jax.lax.scan(lambda c, x: (c * 2 + x, c), 0.0, chosen, reverse=True)
        nothing = jax.lax.scan(lambda c, x: (c, x), 0.0, xs[:0])[1]
        return carry, ys, nothing

    xs = np.array([1, 2, 3], np.float32)
    carry, ys, nothing = m2ml.get(m2ml.jit(fn).on(backend)(9, xs))
    assert carry == 170
    np.testing.assert_array_equal(ys, [80, 30, 0])
    assert nothing.shape == (0,)


def test_callbacks_run_on_the_host(backend):
    seen = []

    def fn(x):
        jax.debug.callback(lambda y: seen.append(float(y)), x.sum())
        return jax.pure_callback(lambda y: np.asarray(y) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    np.testing.assert_array_equal(m2ml.get(m2ml.jit(fn).on(backend)(np.ones(3, np.float32))), [2, 2, 2])
    jax.effects_barrier()
    assert seen == [3.0]


def test_optax_and_flax_train_together(backend):
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    tx = optax.adam(0.1)

    @m2ml.jit(donate_argnames=("params", "opt_state"))
    def step(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((nnx.merge(graph, p)(x) - y) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32)
    opt_state, losses = tx.init(params), []
    for _ in range(60):
        params, opt_state, loss = step.on(backend)(params, opt_state, x, y)
        losses.append(float(m2ml.get(loss)))
    assert losses[-1] < 0.01 * losses[0]


def test_an_argument_that_is_no_array_is_named(backend):
    fn = m2ml.jit(lambda tree: tree["x"]).on(backend)
    with pytest.raises(TypeError, match=r"(static_argnames|abstract array)"):
        fn({"x": "text"})


def test_program_names_the_argument_that_is_no_array():
    with pytest.raises(TypeError, match=r"got a str at argument \[0\]\[0\]\['x'\].*static_argnames"):
        m2ml.jit(lambda tree: tree).program({"x": "text"})


def test_jit_refuses_what_is_not_a_function():
    with pytest.raises(TypeError, match=r"m2ml.jit takes a function; got int"):
        m2ml.jit(3)


def test_errors_of_the_users_function_pass_through_unchanged(backend):
    def fn(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        m2ml.jit(fn).on(backend)(1.0)


def test_debug_names_the_equation_that_made_the_first_nan(backend):
    @functools.partial(m2ml.jit, debug=True)
    def fn(x):
        y = jnp.exp(x)
        return jax.lax.scan(lambda c, v: (c + jnp.log(v), c), 0.0, y - 2)[0]

    with pytest.raises(
        m2ml.NotANumber, match=rf"first NaN of fn on {backend} was made by log\(float32\[\]\) at .*test_jit.py:\d+"
    ):
        fn.on(backend)(np.array([1.0, 0.0], np.float32))
    assert np.isfinite(m2ml.get(fn.on(backend)(np.array([1.0, 2.0], np.float32))))


def test_explain_and_cost_describe_a_call(backend):
    fn = m2ml.jit(lambda x, w: jnp.tanh(x @ w)).on(backend)
    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    said = str(fn.explain(x, w))
    assert f"runs on {backend}" in said
    assert "dot_general 1" in said
    cost = fn.cost(x, w)
    assert cost.flops == 2 * 2 * 3 * 4 + 8
    assert cost.bytes == 4 * (6 + 12 + 8)
    assert cost.peak_bytes == 4 * (6 + 12 + 8 + 8)


def test_cost_counts_loops_and_reports_unknown_lengths():
    scanned = m2ml.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=5)[0])
    assert scanned.cost(np.ones(7, np.float32)).flops == 35
    looped = m2ml.jit(lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c * 2, x))
    assert not looped.cost(np.ones(7, np.float32)).bounded


def test_fingerprints_know_the_program_and_nothing_else():
    def program(scale, n=3):
        return m2ml.jit(lambda x: jnp.tanh(x) * scale).program(np.ones(n, np.float32)).fingerprint

    assert program(2.0) == program(2.0)
    assert len({program(2.0), program(3.0), program(2.0, 4)}) == 3


def test_strict_forbids_what_runs_elsewhere():
    def fn(x):
        return jax.lax.linalg.schur(x)[0]

    x = np.eye(3, dtype=np.float32)
    with pytest.warns(
        m2ml.FallbackWarning, match=r"mlx runs schur\(float32\[3,3\]\) at .*test_jit.py:\d+ .* on the CPU"
    ):
        m2ml.jit(fn).on("mlx")(x)
    with pytest.raises(m2ml.UnsupportedPrimitive, match=r"mlx cannot run schur.*strict=True"):
        m2ml.jit(fn, strict=True).on("mlx")(x)
    again = m2ml.jit(fn).on("mlx")
    with pytest.warns(m2ml.FallbackWarning):
        again(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(x)


def test_a_device_out_of_memory_is_said_in_one_sentence(monkeypatch):
    import mlx.core as mx

    fn = m2ml.jit(lambda x: x + 1).on("mlx")
    fn(np.ones(3, np.float32))

    def full(*arrays):
        raise RuntimeError("[malloc] Unable to allocate 99 bytes.")

    monkeypatch.setattr(mx, "async_eval", full)
    with pytest.raises(m2ml.OutOfMemory, match=r"<lambda> does not fit into MLX's memory: .*99 bytes.*smaller batch"):
        fn(np.ones(3, np.float32))


def test_float64_needs_x64_and_is_refused_where_the_device_lacks_it(monkeypatch, enable_x64):
    from m2ml_mlx import convert

    assert m2ml.get(m2ml.jit(lambda x: x).on("mlx")(np.ones(2))).dtype == np.float32
    monkeypatch.setattr(convert, "on_gpu", lambda: True)
    with enable_x64(), pytest.raises(m2ml.UnsupportedDtype, match=r"no float64.*backend 'cpu', or float32"):
        m2ml.jit(lambda x: x + 1).on("mlx")(np.ones(2))


def test_complex128_is_refused_by_name(enable_x64):
    with enable_x64(), pytest.raises(m2ml.UnsupportedDtype, match=r"MLX has no complex128"):
        m2ml.jit(lambda x: x + 1).on("mlx")(np.ones(2, np.complex128))


def test_platform_dependent_code_takes_the_branch_for_cpu_or_the_default(backend):
    def fn(x):
        named = jax.lax.platform_dependent(x, cpu=lambda x: x + 1, tpu=lambda x: x + 2, default=lambda x: x * 3)
        return named, jax.lax.platform_dependent(x, tpu=lambda x: x + 2, default=lambda x: x * 3)

    assert [float(y) for y in m2ml.get(m2ml.jit(fn).on(backend)(5.0))] == [6, 15]


def test_custom_derivatives_and_custom_batching_are_only_calls(backend):
    @jax.custom_batching.custom_vmap
    def double(x):
        return x * 2

    @double.def_vmap
    def _(axis_size, in_batched, x):
        return x * 3, True

    out = m2ml.jit(lambda x: (double(x), jax.vmap(double)(x))).on(backend)(np.ones(2, np.float32))
    np.testing.assert_array_equal(m2ml.get(out), [[2, 2], [3, 3]])
