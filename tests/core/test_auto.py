"""backend="auto": measured once, remembered, never a backend that disagrees."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml import auto
from m2ml.plugins import registry


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path))
    return tmp_path / "auto"


def fn(x):
    return jnp.tanh(x) @ x.T


X = np.ones((4, 3), np.float32)


def test_the_winner_is_remembered_on_disk_and_explained(cache, monkeypatch):
    np.testing.assert_array_equal(m2ml.get(m2ml.jit(fn, backend="auto")(X)), m2ml.get(m2ml.jit(fn)(X)))
    (file,) = cache.glob("*.json")
    choice = json.loads(file.read_text())
    assert set(choice["times"]) == {"cpu", "mlx"}
    assert choice["backend"] == min(choice["times"], key=choice["times"].get)
    monkeypatch.setattr(auto, "measure", lambda *args: pytest.fail("measured again"))
    again = m2ml.jit(fn).on("auto")
    again(X)
    said = str(again.explain(X))
    assert "ms per call, chosen" in said
    assert "jax_metal: passed over: backend 'jax_metal' does not run here" in said


def test_the_remembered_backend_is_the_one_that_runs(cache):
    m2ml.jit(fn, backend="auto")(X)
    (file,) = cache.glob("*.json")
    for name in ("mlx", "cpu"):
        file.write_text(json.dumps({"backend": name, "times": {}, "rejected": {}}))
        assert registry.get(name).owns(m2ml.jit(fn, backend="auto")(X))


@pytest.mark.parametrize("content", ["", "{", '{"backend": "gone", "times": {}, "rejected": {}}', "[1]"])
def test_a_file_that_says_nothing_useful_is_measured_again(cache, content):
    m2ml.jit(fn, backend="auto")(X)
    (file,) = cache.glob("*.json")
    file.write_text(content)
    m2ml.jit(fn, backend="auto")(X)
    assert json.loads(file.read_text())["backend"] in ("cpu", "mlx")


def test_a_backend_that_disagrees_is_never_chosen(cache, monkeypatch):
    mlx = registry.get("mlx")
    right = mlx.compile
    monkeypatch.setattr(mlx, "compile", lambda program: lambda *args: [x * 1.01 for x in right(program)(*args)])
    monkeypatch.setattr(auto, "_time", lambda call: 0.0 if "mlx" in repr(call()) else 1.0)
    m2ml.jit(fn, backend="auto")(X)
    (file,) = cache.glob("*.json")
    choice = json.loads(file.read_text())
    assert choice["backend"] == "cpu"
    assert "mlx: DISAGREES" in choice["rejected"]["mlx"]


def test_a_program_too_large_for_the_reference_runs_on_cpu_and_says_so(monkeypatch):
    monkeypatch.setattr(auto, "MOST_FLOPS", 1)
    bound = m2ml.jit(fn, backend="auto")
    assert isinstance(bound(X), jax.Array)
    assert "too large for the reference to check" in str(bound.explain(X))


def test_auto_inside_another_program_and_with_keys():
    inner = m2ml.jit(lambda key, x: x + jax.random.uniform(key), backend="auto")
    outer = m2ml.jit(lambda key, x: jax.grad(inner, argnums=1)(key, x))
    assert float(outer(jax.random.key(0), 2.0)) == 1.0
    expected = 2 + jax.random.uniform(jax.random.key(0))
    assert float(m2ml.get(inner(jax.random.key(0), 2.0))) == float(expected)


def test_a_folder_that_cannot_be_written_costs_the_memory_not_the_call(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("M2ML_CACHE", str(blocked))
    with pytest.warns(RuntimeWarning, match=r"cannot remember its choice in .*\(Not a directory\); set M2ML_CACHE"):
        assert m2ml.get(m2ml.jit(fn, backend="auto")(X)).shape == (4, 4)
