"""Plugins: discovery, selection, and what is said when one fails."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

import m2ml
from m2ml import selection
from m2ml.plugins import Registry


def test_unknown_names_list_what_exists():
    with pytest.raises(
        m2ml.BackendNotFound, match=r"there is no backend 'nope'; registered are cpu, .*mlx, reference.*'auto'"
    ):
        m2ml.jit(lambda x: x, backend="nope")
    with pytest.raises(m2ml.BackendNotFound, match="'nope'"):
        m2ml.use("nope")
    with pytest.raises(m2ml.BackendNotFound, match="'nope'"):
        m2ml.jit(lambda x: x).on("nope")
    with pytest.raises(m2ml.BackendNotFound, match=r"by its name, a string; got int"):
        m2ml.use(3)


def test_a_named_backend_that_cannot_run_says_why_and_how_to_install():
    with pytest.raises(
        m2ml.BackendUnavailable, match=r"'jax_metal' does not run here: an Apple GPU needs macOS.*pip install"
    ):
        m2ml.jit(lambda x: x).on("jax_metal")(1.0)
    assert "jax_metal" not in m2ml.backends()


def test_use_is_a_block_and_a_default():
    before = m2ml.current()
    with m2ml.use("reference"):
        assert m2ml.current() == "reference"
        assert isinstance(m2ml.jit(lambda x: x + 1)(1.0), np.ndarray)
        with m2ml.use("mlx"):
            assert m2ml.current() == "mlx"
        assert m2ml.current() == "reference"
    assert m2ml.current() == before
    m2ml.use("reference")
    try:
        assert m2ml.current() == "reference"
    finally:
        m2ml.use(before)


def test_a_bound_function_ignores_the_block():
    bound = m2ml.jit(lambda x: x + 1, backend="reference")
    with m2ml.use("cpu"):
        assert isinstance(bound(np.float32(1)), np.ndarray)


def _python(code, **env):
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_environment_chooses_the_default():
    assert _python("import m2ml; print(m2ml.current())", M2ML_BACKEND="mlx") == "mlx"


def test_importing_starts_nothing():
    said = _python(
        """
        import sys, m2ml
        heavy = ("mlx", "mlx.core", "flax", "optax", "m2ml_mlx", "m2ml_cpu", "matplotlib")
        loaded = [name for name in heavy if name in sys.modules]
        from jax._src import xla_bridge
        print(loaded, xla_bridge.backends_are_initialized())
        """
    )
    assert said == "[] False"


def test_arrays_of_a_backend_that_was_never_asked_for_are_known():
    code = "import mlx.core as mx, m2ml; print(m2ml.jit(lambda x: x * 2)(mx.ones(2)).tolist())"
    assert _python(code) == "[2.0, 2.0]"


def test_tracing_and_explaining_costs_start_no_backend():
    assert (
        _python(
            """
            import m2ml, numpy as np
            from jax._src import xla_bridge
            print(m2ml.jit(lambda x: x * 2).cost(np.ones(3, "float32")).flops, xla_bridge.backends_are_initialized())
            """
        )
        == "3 False"
    )


def test_a_failing_plugin_costs_itself_only(monkeypatch):
    def entry(name, load):
        return SimpleNamespace(name=name, load=load)

    def broken():
        raise ImportError("its library\nis missing")

    good = SimpleNamespace()

    class Plugin:
        @m2ml.hookimpl
        def m2ml_register_backends(self, register):
            register("good", lambda: good)

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry("bad", broken), entry("fine", Plugin)])
    registry = Registry()
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [entry("bad", broken), entry("fine", lambda: Plugin())]
    )
    assert registry.get("good") is good
    with pytest.raises(
        m2ml.BackendNotFound, match=r"plugin of backend 'bad' failed to load: ImportError: its library is missing"
    ):
        registry.get("bad")
    assert registry.reasons() == {"bad": "ImportError: its library is missing"}


def test_an_engine_that_raises_keeps_its_reason():
    registry = Registry()
    registry._discovered = True
    registry.register("odd", lambda: 1 / 0, install="pip install odd")
    for _ in range(2):
        with pytest.raises(
            m2ml.BackendUnavailable, match=r"'odd' does not run here: ZeroDivisionError: .*pip install odd"
        ):
            registry.get("odd")
    assert registry.available() == {}


def test_notes_of_the_error_and_ways_to_run_are_kept():
    def factory():
        error = m2ml.BackendUnavailable("no device")
        error.add_note("looked at the first bus")
        error.add_note("looked at the second bus")
        raise error

    registry = Registry(_discovered=True)
    ways = {"left": {"SIDE": "l"}, "right": {"SIDE": "r"}}
    registry.register("two", factory, variants=lambda: ways)
    registry.register("one", SimpleNamespace)
    assert registry.reasons() == {"two": "backend 'two' does not run here: no device"}
    assert registry.notes("two") == ("looked at the first bus", "looked at the second bus")
    assert registry.notes("one") == registry.notes("other") == ()
    assert (registry.variants("two"), registry.variants("one")) == (ways, {})


def test_a_name_is_registered_once():
    registry = Registry()
    registry.register("one", lambda: None)
    with pytest.raises(ValueError, match=r"backend name 'one' is already registered by this program"):
        registry.register("one", lambda: None)
    with pytest.raises(ValueError, match=r"'auto' is already registered by m2ml"):
        registry.register("auto", lambda: None)


def test_doctor_reports_what_runs_and_why_the_rest_does_not():
    diagnosis = m2ml.doctor()
    assert {"cpu", "mlx", "reference"} <= set(diagnosis.working)
    assert "an Apple GPU needs macOS" in diagnosis.failing["jax_metal"]
    assert f"{selection.current()} (default)" in diagnosis.text
