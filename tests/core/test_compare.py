"""m2ml.compare: every backend against the reference, within a measured bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml.equivalence import bound_of, unit
from m2ml.plugins import registry


def program(x, w):
    hidden = jnp.tanh(x @ w)
    return {
        "loss": jnp.mean(hidden**2),
        "best": jnp.argmax(hidden, axis=-1),
        "grad": jax.grad(lambda w: jnp.sum(x @ w))(w),
    }


X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def test_every_backend_agrees_and_the_report_names_each_output():
    report = m2ml.compare(program, X, W).check()
    assert {r.backend for r in report.backends} == set(m2ml.backends()) - {"reference"}
    assert [o.path for o in report.backends[0].outputs] == ["['best']", "['grad']", "['loss']"]
    assert "cpu: agrees" in str(report)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("a little too large", lambda outs: [outs[0], outs[1] * (1 + 1e-5), outs[2]]),
        ("an index off by one", lambda outs: [outs[0] + 1, outs[1], outs[2]]),
        ("one element NaN", lambda outs: [outs[0], outs[1] * np.array([[np.nan], *[[1.0]] * 6], np.float32), outs[2]]),
        ("half precision", lambda outs: [outs[0], outs[1].astype(jnp.bfloat16).astype(jnp.float32), outs[2]]),
        ("another dtype", lambda outs: [outs[0].astype(jnp.int16), outs[1], outs[2]]),
        ("another shape", lambda outs: [outs[0], outs[1][:-1], outs[2]]),
    ],
)
def test_a_wrong_result_is_reported(monkeypatch, fault, change):
    cpu = registry.get("cpu")
    right = cpu.compile
    monkeypatch.setattr(cpu, "compile", lambda program: lambda *args: change(right(program)(*args)))
    report = m2ml.compare(program, X, W, backends=["cpu"])
    assert not report.ok, fault
    with pytest.raises(m2ml.Disagreement, match=r"cpu: DISAGREES"):
        report.check()


def test_a_backend_that_fails_is_reported_and_the_others_still_run(monkeypatch):
    def fail(program):
        raise RuntimeError("the engine\nbroke")

    monkeypatch.setattr(registry.get("mlx"), "compile", fail)
    report = m2ml.compare(program, X, W)
    said = {r.backend: r.error for r in report.backends}
    assert said == {"cpu": "", "mlx": "RuntimeError: the engine broke"}


def test_values_that_overflow_or_are_not_numbers_agree():
    m2ml.compare(
        lambda x: (x * x, jnp.log(x), x / 0, jnp.sqrt(-x)), np.array([1e30, -0.0, 3, -np.inf], np.float32)
    ).check()


def test_ties_that_rounding_decides_are_reported_not_judged():
    def ties(x):
        return jnp.argmax(jnp.stack([jnp.sum(x), jnp.sum(x[::-1])]))

    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    report = m2ml.compare(ties, x)
    assert report.ok


def test_bounds_are_exact_for_integers_and_scale_with_the_dtype():
    assert unit(np.int32) == 0
    assert unit(np.float32) == 2.0**-24
    exact = np.array([1.0, 2.0])
    narrow = bound_of(np.float32, exact, [exact * (1 + 2.0**-24)])
    wide = bound_of(np.float16, exact, [exact * (1 + 2.0**-11)])
    assert np.all(narrow.allowed < wide.allowed / 1000)
    integers = bound_of(np.int32, np.array([1, 2]), [np.array([1, 3])])
    assert integers.unstable.tolist() == [False, True]


def test_keys_and_python_scalars_are_inputs_like_any_other():
    m2ml.compare(
        lambda key, x: (jax.random.split(key), jax.random.normal(key, (3,)) * x), jax.random.key(1), 2.0
    ).check()
