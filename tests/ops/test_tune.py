"""`m2ml.tune` and ``m2ml tune``: what is measured, remembered, read, forgotten and refused."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import m2ml
from m2ml import cache, kernel, winners
from m2ml.cli import app
from m2ml.errors import M2mlError

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


@m2ml.op(shapes="x[*b n] -> [*b n]")
def doubled(x, /, *, times: int = 2):
    return times * x


def marked(by, slow=0.0):
    """A kernel of `doubled` that adds ``by``, so that one sees that it ran, and takes so many seconds."""

    def wait(x):
        time.sleep(slow)
        return x

    def run(x, /, *, times):
        y = (times * x + by).astype(x.dtype)
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(y.shape, y.dtype), y) if slow else y

    return lambda: run


@pytest.fixture
def add(monkeypatch, tmp_path):
    """An empty registry of kernels and an empty cache; gives the function that registers a kernel on cpu."""
    monkeypatch.setattr(kernel, "kernels", kernel.Kernels(device_name=lambda backend: "a device"))
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path))
    jax.clear_caches()

    def register(name, load, **more):
        kernel.kernels.register(m2ml.Kernel("doubled", "cpu", name, load, **more))

    yield register
    jax.clear_caches()


def which(fn, x=X):
    """What ran ``fn``: the number that its kernel adds to twice ``x``."""
    return round(float(np.asarray(m2ml.get(fn(x)) - 2 * x).mean()))


def twice():
    return m2ml.jit(lambda x: doubled(x), backend="cpu")


def test_the_fastest_runs_from_then_on(add):
    add("slow", marked(100, slow=0.02), priority=2)
    add("fast", marked(200))
    before = twice()
    assert which(before) == 100
    report = m2ml.tune(before, X, backend="cpu", seconds=0.1)
    (tuned,) = report.calls
    assert tuned.measured.winner in ("fast", "definition")
    assert tuned.measured.times["slow"] >= 0.02
    expected = {"fast": 200, "definition": 0}[tuned.measured.winner]
    assert which(before) == expected  # compiled again
    assert which(twice()) == expected
    said = str(twice().explain(X))
    assert f"{tuned.measured.winner}" in said
    assert "slow: measured 2" in said
    assert "doubled(float32[3,4])" in str(report)


def test_a_kernel_that_priority_chooses_is_kept_unless_another_is_clearly_faster(add, monkeypatch):
    monkeypatch.setattr("m2ml.tuning.MARGIN", 1e6)
    add("first", marked(100), priority=1)
    add("second", marked(200))
    m2ml.tune(twice(), X, backend="cpu", seconds=0.01)
    assert which(twice()) == 100
    assert "doubled: kernel first, measured" in str(twice().explain(X))
    assert "second: measured" in str(twice().explain(X))


def test_the_definition_may_win(add):
    add("slow", marked(100, slow=0.02))
    m2ml.tune(twice(), X, backend="cpu", seconds=0.05)
    assert which(twice()) == 0
    said = str(twice().explain(X))
    assert "doubled: its definition, measured" in said
    assert "slow: measured 2" in said


def test_a_choice_is_for_its_shapes_dtypes_and_static_arguments(add):
    add("slow", marked(100, slow=0.01))
    m2ml.tune(twice(), X, backend="cpu", seconds=0.02)
    assert which(twice(), X[:2]) == 100
    assert which(twice(), X.astype(np.float16)) == 100
    assert int(np.asarray(m2ml.jit(lambda x: doubled(x, times=3), backend="cpu")(X) - 3 * X).mean().round()) == 100
    assert which(twice()) == 0


def test_a_kernel_whose_source_changed_is_judged_anew(add, tmp_path):
    source = tmp_path / "slow.cc"
    (tmp_path / "shared.h").write_text("1")
    source.write_text("before")

    def register():
        kernel.kernels = kernel.Kernels(device_name=lambda backend: "a device")
        add("slow", marked(100, slow=0.01), source=source)

    register()
    m2ml.tune(twice(), X, backend="cpu", seconds=0.02)
    assert which(twice()) == 0
    source.write_text("after")
    register()
    assert which(twice()) == 100
    source.write_text("before")
    (tmp_path / "shared.h").write_text("2")
    register()
    assert which(twice()) == 100
    (tmp_path / "shared.h").write_text("1")
    register()
    assert which(twice()) == 0


@pytest.mark.parametrize("damage", ["", "{}", '{"winner": "gone", "times": {}, "failed": {}}', "[1]"])
def test_what_cannot_be_read_is_as_good_as_absent(add, damage):
    add("slow", marked(100, slow=0.01))
    m2ml.tune(twice(), X, backend="cpu", seconds=0.02)
    (file,) = winners.folder().iterdir()
    assert json.loads(file.read_text())["call"]["op"] == "doubled"
    file.write_text(damage)
    assert which(twice()) == 100


def test_a_kernel_that_fails_is_reported_and_never_chosen(add):
    def broken(x, /, *, times):
        raise RuntimeError("it only takes\nthe moon")

    add("broken", lambda: broken, priority=1)
    add("works", marked(100))
    report = m2ml.tune(twice(), X, backend="cpu", seconds=0.02)
    assert "broken: failed: " in str(report)
    assert "it only takes the moon" in str(report)
    assert which(twice()) in (0, 100)
    assert "broken: when it was measured it failed: " in str(twice().explain(X))


def test_ops_inside_loops_branches_gradients_and_other_ops_are_met(add):
    add("slow", marked(100, slow=0.01), dtypes=("float32",))
    outer = m2ml.op(shapes="x[*b n] -> [*b n]", name="outer")(lambda x, /: doubled(x[..., :1]) + x)

    def fn(x):
        total = jax.lax.scan(lambda c, row: (c + doubled(row), None), jnp.zeros(4), x)[0]
        total = jax.lax.cond(x[0, 0] < 99, lambda t: doubled(t[None, :3])[0], lambda t: t[:3], total)
        return jnp.sum(total) + jnp.sum(outer(x)) + jnp.sum(doubled(x.astype(jnp.bfloat16)).astype(jnp.float32))

    report = m2ml.tune(fn, X, backend="cpu", seconds=0.01, grad=True)
    measured = {tuned.call for tuned in report.calls if tuned.measured}
    assert measured == {"doubled(float32[4])", "doubled(float32[1,3])", "doubled(float32[3,1])"}
    said = str(report)
    assert "doubled(bfloat16[3,4]): its definition; no kernel takes it\n  slow: it does not take bfloat16" in said
    assert "outer(float32[3,4]): its definition; no kernel takes it" in said
    assert "doubled_backward(" in said


def test_arguments_that_are_overwritten_are_given_anew(add):
    """A donated argument is dead after a call; each measurement has one of its own."""
    add("plain", marked(100))
    donating = m2ml.jit(lambda x: doubled(x), backend="cpu", donate_argnames="x")
    x = jnp.asarray(X)
    m2ml.tune(donating, x, backend="cpu", seconds=0.02)
    np.testing.assert_array_equal(x, X)


def test_the_engines_own_functions_are_measured_on_mlx(tmp_path, monkeypatch):
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path))
    fn = m2ml.jit(lambda x: m2ml.ops.rms_norm(x), backend="mlx")
    report = m2ml.tune(fn, X, backend="mlx", seconds=0.02)
    assert set(report.calls[0].measured.times) == {"mx.fast.rms_norm", "definition"}
    np.testing.assert_allclose(m2ml.get(fn(X)), m2ml.get(fn.on("reference")(X)), rtol=1e-5)
    assert "rms_norm: " in str(fn.explain(X))
    assert "measured" in str(fn.explain(X))


def test_a_program_without_ops_says_so():
    assert "it calls no ops of m2ml.ops" in str(m2ml.tune(jnp.sin, X, backend="cpu"))


@pytest.mark.parametrize(
    ("settings", "argument", "said"),
    [
        ({"backend": "auto"}, X, "auto is no backend of its own: name the one to tune"),
        ({"backend": "nowhere"}, X, "there is no backend 'nowhere'; registered are"),
        ({"seconds": 0.0}, X, r"seconds is 0\.0; it must be above 0"),
        ({"seconds": float("nan")}, X, "seconds is nan; it must be above 0"),
        ({}, jax.ShapeDtypeStruct((3,), np.float32), r"it takes arrays; got the type float32\[3\]"),
    ],
)
def test_what_cannot_be_tuned_is_refused(settings, argument, said):
    with pytest.raises(M2mlError, match=said):
        m2ml.tune(jnp.sin, argument, **({"backend": "cpu"} | settings))


def test_a_cache_that_cannot_be_written_is_an_error(add, monkeypatch, tmp_path):
    add("plain", marked(100))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path / "file"))
    with pytest.raises(M2mlError, match=r"tune cannot remember its measurements in .*; set M2ML_CACHE"):
        m2ml.tune(twice(), X, backend="cpu", seconds=0.01)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "winner.json"
    cache.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        cache.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    writers = [threading.Thread(target=cache.write_json, args=(path, {"a": [i] * 10_000})) for i in range(8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        json.loads(path.read_text())
    for writer in writers:
        writer.join()
    assert [file.name for file in path.parent.iterdir()] == ["winner.json"]


def test_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path))
    given = ["tune", "m2ml.ops:rms_norm", "--arg", "float32[9,5]", "--seconds", "0.02"]
    done = CliRunner().invoke(app, [*given, "--grad"])
    assert done.exit_code == 0, done.output
    assert "rms_norm(float32[9,5]): " in done.output
    assert "rms_norm_backward(" in done.output
    assert f"remembered in {tmp_path / 'tuned'}" in done.output
    wrong = CliRunner().invoke(app, [*given, "--arg", "float32[4]"])
    assert wrong.exit_code == 2
    assert "m2ml.ops:rms_norm does not take these arguments: rms_norm: n is 5 in x[9, 5] but 4" in wrong.output
