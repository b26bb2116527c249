"""What compare does with functions and engines that misbehave: one clear sentence each, nothing lost."""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import m2ml
from m2ml.equivalence import memory
from m2ml.equivalence.memory import needed

X = np.ones((2, 3), np.float32)


def called(function):
    """A program that calls ``function`` on the host."""
    return lambda x: 2 * jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_a_function_with_side_effects_is_refused_before_it_runs():
    calls = []

    def writes(x):
        io_callback(lambda v: calls.append(v), None, x)
        return x * 2

    with pytest.raises(
        m2ml.M2mlError, match=r"io_callback\(float32\[2,3\]\) at .*bad_input.py:\d+ .* has side effects"
    ):
        m2ml.compare(writes, X)
    with pytest.raises(m2ml.M2mlError, match="has side effects"):
        m2ml.compare(lambda x: jax.lax.scan(lambda c, _: (writes(c), None), x, None, length=2)[0], X)
    assert calls == []


def test_debug_callbacks_run_once_per_backend_and_not_on_the_reference(capfd):
    def prints(x):
        jax.debug.print("x is {}", x[0, 0])
        return jax.lax.scan(lambda c, _: (jax.debug.print("c is {}", c[0, 0]) or c + 1, None), x, None, length=2)[0]

    assert m2ml.compare(prints, X, backends=["cpu", "mlx"]).ok
    printed = capfd.readouterr().out.splitlines()
    assert sorted(printed) == sorted(["x is 1.0", "c is 1.0", "c is 2.0"] * 2)


def test_a_deterministic_callback_is_compared():
    assert m2ml.compare(called(np.sin), X).ok


def test_a_callback_that_is_not_deterministic_is_refused():
    drawn = called(lambda v: np.random.default_rng().normal(size=v.shape).astype(np.float32))
    with pytest.raises(m2ml.M2mlError, match=r"pure_callback\(float32\[2,3\]\) .* gives another result each time"):
        m2ml.compare(drawn, X)
    with pytest.raises(m2ml.M2mlError, match="gives another result each time"):
        m2ml.compare(lambda x: jax.lax.scan(lambda c, _: (drawn(c), None), x, None, length=2)[0], X)


def test_nan_agrees_with_nan_and_the_equation_that_made_it_is_named():
    report = m2ml.compare(lambda x: {"a": jnp.log(x - 2), "b": jnp.sqrt(x)}, X).check()
    (note,) = report.notes
    assert note.startswith("NaN in ['a']: the first NaN of <lambda> on reference was made by log(float32[2,3]) at ")
    assert "note: NaN in ['a']" in str(report)


def test_nan_in_the_arguments_is_said():
    report = m2ml.compare(lambda x, y: x + y["k"], X, {"k": X * np.nan}).check()
    assert report.notes == ("NaN in the result: y['k'] holds NaN",)


def test_a_nan_of_the_backend_alone_is_a_disagreement(monkeypatch):
    cpu = m2ml.plugins.registry.get("cpu")
    right = cpu.apply
    monkeypatch.setattr(cpu, "compile", lambda program: lambda x: [x * np.nan])
    monkeypatch.setattr(
        cpu, "apply", lambda e, xs: [y * np.nan for y in right(e, xs)] if e.name == "sin" else right(e, xs)
    )
    report = m2ml.compare(lambda x: jnp.sin(x) + 1, X, backends=["cpu"])
    with pytest.raises(m2ml.Disagreement, match=r"first equation outside its bound is sin\(float32\[2,3\]\)"):
        report.check()


def test_shapes_that_do_not_fit_are_said_with_the_call():
    with pytest.raises(TypeError, match=r"got \(3,\) and \(2,\)") as caught:
        m2ml.compare(lambda x, y: x @ y, X, X)
    assert "m2ml.compare was tracing <lambda>(float32[2,3], float32[2,3])" in caught.value.__notes__


def test_a_backend_of_another_number_of_outputs_is_reported(monkeypatch):
    monkeypatch.setattr(m2ml.plugins.registry.get("cpu"), "compile", lambda program: lambda x: [x, x])
    assert m2ml.compare(jnp.sin, X, backends=["cpu"]).backends[0].error == "it gave 2 outputs instead of 1"


def test_a_backend_that_does_not_exist_is_an_error():
    with pytest.raises(m2ml.BackendNotFound, match="there is no backend 'nope'; registered are"):
        m2ml.compare(jnp.sin, X, backends=["cpu", "nope"])


# Memory ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    monkeypatch.setattr(m2ml.plugins.registry.get("cpu"), "compile", lambda program: pytest.fail("it started"))
    x = np.ones((300, 300), np.float32)
    said = (
        r"comparing <lambda> on cpu needs about [\d.]+ MB of memory \(the float64 reference .* are free; use a smaller"
    )
    with pytest.raises(m2ml.OutOfMemory, match=said):
        m2ml.compare(lambda x: jnp.sin(x) + 1, x, backends=["cpu"])


def test_what_fits_is_compared(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100_000_000)
    assert m2ml.compare(lambda x: jnp.sin(x) + 1, np.ones((300, 300), np.float32)).ok


def test_the_need_grows_with_the_arrays_and_the_backends():
    def of(size, backends):
        return needed(m2ml.jit(lambda x: jnp.sin(x) + 1).program(jax.ShapeDtypeStruct((size,), np.float32)), backends)

    assert of(2000, 1).reference == pytest.approx(2 * of(1000, 1).reference, rel=0.001)
    assert of(1000, 3).results - of(1000, 1).results == 2 * 4000
    assert of(1000, 1).bytes > of(1000, 1).reference > 8 * 4000


def test_the_estimate_is_of_what_numpy_takes():
    """At least what a run takes, at most twice that: measured by what NumPy tells tracemalloc."""
    import tracemalloc

    from m2ml.equivalence.measure import measured_bounds

    x = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
    program = m2ml.jit(lambda x: jnp.tanh(x @ x.T) @ x).program(x)
    measured_bounds(program, [x])
    tracemalloc.start()
    measured_bounds(program, [x])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= needed(program, 0).reference <= 2 * peak


# Engines that die ------------------------------------------------------------------------------------


def elsewhere(function):
    """A callback that runs ``function`` in any process but this one."""
    here = os.getpid()

    def callback(v):
        if os.getpid() != here:
            function()
        return v

    return called(callback)


def die_on_mlx():
    if "mlx.core" in sys.modules:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_backend_that_dies_costs_its_own_result_only():
    cpu, mlx = m2ml.compare(elsewhere(die_on_mlx), X, backends=["cpu", "mlx"], isolated=True).backends
    assert cpu.ok
    assert (mlx.ok, mlx.error) == (False, "the process of mlx died of SIGKILL")


def test_a_backend_that_hangs_is_stopped():
    (report,) = m2ml.compare(elsewhere(lambda: time.sleep(600)), X, backends=["cpu"], isolated=8).backends
    assert report.error == "cpu was stopped after 8 s without a result; give it longer with isolated=SECONDS"


def test_an_isolated_comparison_is_the_same_comparison():
    @m2ml.jit(static_argnames="n")
    def fn(key, params, n):
        return jax.random.normal(key, (3,)) * params["w"] ** n

    args = (jax.random.key(1), {"w": m2ml.put(X[0], "mlx")})
    inside = m2ml.compare(fn, *args, n=2, grad=True, backends=["mlx"]).check()
    assert m2ml.compare(fn, *args, n=2, grad=True, backends=["mlx"], isolated=True) == inside


def test_what_cannot_be_sent_to_a_process_is_said():
    lock = __import__("threading").Lock()
    with pytest.raises(m2ml.M2mlError, match="cannot run isolated, since it cannot be pickled: cannot pickle"):
        m2ml.compare(lambda x: x + lock.locked(), X, backends=["cpu"], isolated=True)


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(m2ml.M2mlError, match="no backend to hold against the reference"):
        m2ml.compare(jnp.sin, X, backends=[])
