"""What the ops' samples do not reach in the C++ kernels: stores past the cache, and results in place of arguments.

And the kernels that benchmarks measure against.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from m2ml_cpu import kernels
from m2ml_cpu.ffi import handler

import m2ml
from m2ml import ops


def rows(seed, dtype, shape=(37, 64)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


CALLS = {
    "add_rms_norm": (
        ops.add_rms_norm,
        kernels.add_rms_norm,
        {"eps": 1e-6},
        lambda dtype: (rows(0, dtype), rows(1, dtype), None),
    ),
    "geglu": (ops.geglu, kernels.geglu, {"approximate": "tanh"}, lambda dtype: (rows(0, dtype), rows(1, dtype))),
    "batch_norm_act": (
        ops.batch_norm_act,
        kernels.batch_norm_act,
        {"train": True, "momentum": 0.1, "eps": 1e-5, "activation": "silu"},
        lambda dtype: (rows(0, dtype), jnp.zeros(64), jnp.ones(64), None, None),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_stores_past_the_cache_are_the_same(tmp_path, name, dtype):
    """Where nothing fits the cache, as arrays of hundreds of megabytes do not."""
    op, make, static, arguments = CALLS[name]
    source = tmp_path / f"past_the_cache_{name}_{dtype}.cc"
    source.write_text(f'#define M2ML_CACHE_SIZE 0\n#include "{name}.cc"\n')
    streaming = make(handler(source, name))
    usual = m2ml.jit(lambda *args: op(*args, **static), backend="cpu")
    assert f"kernel cpp/{name}" in str(usual.explain(*arguments(dtype)))
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(lambda *args: streaming(*args, **static))(*arguments(dtype)),
        usual(*arguments(dtype)),
    )


ROUNDING = """#include "two.h"
using namespace m2ml;
M2ML_KERNEL(rounding) {
  const float* x = call.in(0).data<float>();
  with_type(call.out(0).type(), [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T *one = call.out(0).data<T>(), *two = call.out(1).data<T>();
    const auto into = [=](T* to) {
      return [=](int64_t i, auto whole, int64_t n) { store_at(to + i, load_at(x + i, whole, n), whole, n); };
    };
    each_vector(call.in(0).count(), into(one));
    each_two<T>(call.in(0).count(), into(two));
  });
}
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_to_nearest_even(tmp_path, dtype):
    """At every exponent and sign, on, below and above the middle; what is not a number stays none."""
    source = tmp_path / f"rounding_{dtype}.cc"
    source.write_text(ROUNDING)
    lower = np.array([[0], [1], [0x1000], [0x7FFF], [0x8000], [0x8001], [0xFFFF]], np.uint32)
    x = (np.arange(1 << 16, dtype=np.uint32) << 16 | lower).view(np.float32).ravel()[:-3]
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(jnp.dtype(dtype)).astype(np.float32)
    tiny = (x != 0) & (np.abs(x) < 2 * np.finfo(np.float32).tiny)  # which AVX-512's own conversion flushes
    like = jax.ShapeDtypeStruct(x.shape, dtype)
    for got in handler(source, "rounding")((like, like), jnp.asarray(x)):
        np.testing.assert_array_equal(np.asarray(got, np.float32)[~tiny], wanted[~tiny])


def test_batch_norm_is_left_to_xla_where_that_is_faster():
    def said(dtype, **static):
        norm = m2ml.jit(lambda x, v: ops.batch_norm_act(x, v, v, **static)[0], backend="cpu")
        return "kernel cpp/batch_norm_act" in str(norm.explain(rows(0, dtype), jnp.ones(64)))

    assert not said("float32", train=False, activation="relu")
    assert said("float32", train=False, activation="silu")
    assert said("float32", train=True, activation="relu")
    assert said("bfloat16", train=False, activation="relu")


def test_arguments_that_live_on_are_not_overwritten():
    """`add_rms_norm` may write its results where its arguments were, the gradient of a loss where the logits were."""
    x, residual, labels = rows(0, "float32"), rows(1, "float32"), jnp.arange(37)

    @m2ml.jit
    def both(x, residual, labels):
        normed, total = ops.add_rms_norm(2 * x, 3 * residual)
        logits = normed * 2
        gradient = jax.grad(lambda logits: ops.softmax_cross_entropy(logits, labels).sum())(logits)
        return normed, total, 2 * x, 3 * residual, logits, gradient

    def exact(x, residual):
        total = 2 * x + 3 * residual
        normed = total / np.sqrt(np.mean(total**2, -1, keepdims=True) + 1e-6)
        shares = np.exp(2 * normed) / np.exp(2 * normed).sum(-1, keepdims=True)
        return normed, total, 2 * x, 3 * residual, 2 * normed, shares - np.eye(64)[:37]

    wanted = exact(np.asarray(x, float), np.asarray(residual, float))
    for got, expected in zip(both(x, residual, labels), wanted, strict=True):
        np.testing.assert_allclose(
            got, expected, rtol=16 * np.finfo(np.float32).eps, atol=16 * np.finfo(np.float32).eps
        )


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("source", sorted(BENCHMARKS.glob("*.cc")), ids=lambda path: path.name)
def test_what_benchmarks_measure_against_does_what_it_says(source):
    x = (jnp.arange(64 * 1024, dtype=jnp.float32) % 7).reshape(64, 1024)  # sums of these are exact
    given = {"copy": x, "pass": x, "reading": jnp.sum(x)}[source.stem]
    aliases = {0: 0} if source.stem == "pass" else None
    found = jax.jit(lambda x: handler(source)(jax.ShapeDtypeStruct(given.shape, given.dtype), x, aliases=aliases))(x)
    np.testing.assert_array_equal(found, given)
