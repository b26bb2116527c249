"""Each entry of the list has a source and acts: refused, run on the CPU, lowered otherwise, or given its variables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_mac import distribution, mac
from m2ml_jax_metal import engine, known_bad
from m2ml_jax_metal.known_bad import KNOWN_BAD
from m2ml_jax_metal.ladder import climb
from m2ml_jax_metal.probe import Answer
from m2ml_jax_metal.providers import ENVIRONMENT, PROVIDERS
from m2ml_jax_metal.rewrites import REWRITES
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import m2ml
from m2ml import kernel, stock
from m2ml.errors import FallbackWarning, UnsupportedPrimitive
from m2ml.plugins import registry

#: Versions that there were, and some in between.
RELEASES = (
    "0.0.5",
    "0.1.0",
    "0.1.1",
    "0.9.7",
    "0.10.1.0",
    "0.10.9",
    "0.10.10",
    "0.10.11",
    "0.11.0",
    "0.11.1",
    "0.11.7",
)
RELEASES += ("0.11.8", "0.11.9")


def passes(*_):
    return Answer(True, "5 checks passed")


def afflicted(entry):
    """A Mac with the newest release of which an entry speaks, and the setting it speaks of."""
    version = max((v for v in RELEASES if v in SpecifierSet(entry.versions)), key=Version)
    environment = {ENVIRONMENT: entry.distribution}
    environment |= {name: value.replace("*", "1") for name, value in entry.if_set.items()}
    chip = entry.chip.replace("[5-9]", "5").replace("*", " Max") if entry.chip != "*" else "Apple M4"
    release = distribution(entry.distribution, version, requires=())
    jax_version = "0.5.0" if entry.distribution == "jax-metal" else "0.11.2"
    return mac(release, jax=jax_version, chip=chip, environment=environment, python="3.13.1")


def ids(entry):
    return f"{entry.distribution} {entry.action} {entry.primitive or entry.rewrite or entry.what[:30]}"


def of_action(*actions):
    return pytest.mark.parametrize("entry", [e for e in KNOWN_BAD if e.action in actions], ids=ids)


@pytest.mark.parametrize("entry", KNOWN_BAD, ids=ids)
def test_every_entry_has_a_source_and_fits_some_release(entry):
    assert entry.source.startswith(("https://", "reproduced"))
    assert entry.distribution in PROVIDERS
    assert entry in climb(afflicted(entry), passes).candidates[0].entries


def test_every_action_is_covered_by_a_test_below():
    assert {e.action for e in KNOWN_BAD} == {"refuse", "fallback", "rewrite", "env"}
    assert all(e.primitive == "" for e in KNOWN_BAD if e.action in ("refuse", "env"))


@of_action("refuse")
def test_a_release_that_is_wrong_is_not_used(entry):
    said = climb(afflicted(entry), passes).reason
    assert said.startswith(entry.distribution)
    assert any(e.what in said for e in KNOWN_BAD if e.action == "refuse")
    without = [e for e in KNOWN_BAD if e is entry]
    assert known_bad.known_bad(entry.distribution, "99.0", mac(), without) == ()


def test_each_of_several_reasons_alone_is_enough(monkeypatch):
    for entry in (e for e in KNOWN_BAD if e.action == "refuse"):
        monkeypatch.setattr(known_bad.known_bad, "__defaults__", ((entry,),))
        assert entry.what in climb(afflicted(entry), passes).reason
        monkeypatch.setattr(known_bad.known_bad, "__defaults__", ((),))
        assert climb(afflicted(entry), passes).chosen


@pytest.fixture
def starting(monkeypatch):
    """`engine.start` without JAX: the environment that the backend would see when it is made."""
    seen = []
    monkeypatch.setattr(engine, "JaxMetalBackend", lambda c: seen.append(dict(engine.os.environ)) or c)
    monkeypatch.setattr(engine.compat, "jax_platforms", str)
    monkeypatch.setattr(engine.compat, "set_jax_platforms", lambda platforms: None)
    monkeypatch.setattr(engine.kernels, "use", lambda provider: None)
    monkeypatch.setattr(engine.rewrites, "register", lambda names, platform: None)
    return seen


@of_action("env")
def test_variables_are_given_to_the_probe_and_set_before_the_start(entry, starting, monkeypatch):
    given = []

    def ask(provider, machine, environment):
        given.append(environment)
        return passes()

    chosen = climb(afflicted(entry), ask).chosen
    assert entry.environment.items() <= given[0].items()
    for name in entry.environment:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    engine.start(chosen)
    assert entry.environment.items() <= starting[0].items()


def test_a_variable_that_the_user_has_set_is_left(starting, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    entry = next(e for e in KNOWN_BAD if "MLX_ENABLE_TF32" in e.environment)
    engine.start(climb(afflicted(entry), passes).chosen)
    assert starting[0]["MLX_ENABLE_TF32"] == "1"


def test_another_chip_is_left_alone():
    assert climb(mac("jax-mps", chip="Apple M4 Pro"), passes).chosen.environment() == {}


@of_action("fallback")
def test_a_program_that_would_be_wrong_runs_on_the_cpu(entry, on_cpu):
    backend = on_cpu(climb(afflicted(entry), passes).chosen)
    program, args, wanted = PROGRAMS[entry.primitive, entry.one_equation]
    if entry.one_equation:
        cpu, ran = registry.get("cpu"), []
        apply = cpu.apply
        cpu.apply = lambda equation, arrays: (ran.append(equation.name), apply(equation, arrays))[1]
        try:
            for step in program(*args).code.steps:
                (got,) = backend.apply(step.equation, [backend.from_host(x) for x in args])
        finally:
            del cpu.apply
        assert ran == [step.equation.name for step in program(*args).code.steps]
    else:
        with pytest.warns(FallbackWarning, match=f"runs on the CPU: {entry.distribution} .*{entry.what[:20]}") as found:
            (got,) = backend.compile(program(*args))(*map(backend.from_host, args))
        assert found[0].message.primitive == entry.primitive
        strict = program(*args, strict=True)
        with pytest.raises(UnsupportedPrimitive, match="strict=True forbids the CPU"):
            backend.compile(strict)
        assert any(gap.primitive == entry.primitive for gap in backend.gaps)
    np.testing.assert_array_equal(backend.to_host(got), wanted)


def traced(fn):
    def program(*args, strict=False):
        return m2ml.jit(fn, strict=strict).program(*args)

    return program


TALL = np.array([[4.0, 2.0], [2.0, 5.0]], "float32")  # its factor is a matrix of integers
TABLE, ONES = np.arange(6.0, dtype="float32").reshape(2, 3), np.array([[1], [2]])

#: What meets an entry, by its primitive and whether it speaks of equations run one at a time.
PROGRAMS = {
    ("cholesky", False): (traced(jax.lax.linalg.cholesky), (TALL,), np.linalg.cholesky(TALL)),
    ("gather", False): (
        traced(lambda x, i: jnp.take_along_axis(x, i, axis=1)),
        (TABLE, ONES),
        np.take_along_axis(TABLE, ONES, axis=1),
    ),
    ("*", True): (traced(lambda x: -x), (TABLE,), -TABLE),
}


@pytest.fixture
def on_cpu(monkeypatch):
    """Makes the engine of a candidate whose platform is the CPU of this machine."""
    monkeypatch.setitem(kernel.platforms, "cpu", "cpu")

    def make(candidate):
        provider = replace(candidate.provider, platform="cpu")
        return engine.JaxMetalBackend(replace(candidate, provider=provider))

    return make


def test_looking_up_rows_is_not_taking_single_elements(on_cpu):
    entry = next(e for e in KNOWN_BAD if e.primitive == "gather")
    backend = on_cpu(climb(afflicted(entry), passes).chosen)
    program = m2ml.jit(lambda table, i: table[i]).program(TABLE, np.array([1, 0]))
    assert "gather" in program.primitives
    (got,) = backend.compile(program)(backend.from_host(TABLE), backend.from_host(np.array([1, 0], "int32")))
    np.testing.assert_array_equal(backend.to_host(got), TABLE[[1, 0]])


@of_action("rewrite")
def test_a_rewrite_stands_in_for_what_is_wrong(entry):
    if entry.rewrite == "stock functions":
        assert callable(stock.stock_functions), "its tests are tests/core/test_stock.py and test_wheels.py here"
        return
    primitive, function = REWRITES[entry.rewrite]
    assert primitive.name == entry.primitive
    x = np.arange(24.0, dtype="float32").reshape(2, 3, 4)
    for dimensions in ((), (0,), (1, 2), (0, 1, 2)):
        wanted = jax.lax.rev(x, dimensions)
        np.testing.assert_array_equal(jax.jit(lambda x, d=dimensions: function(x, dimensions=d))(x), wanted)
    assert function(np.zeros((0, 3), "float32"), dimensions=(0, 1)).shape == (0, 3)
    assert "rev" not in str(jax.make_jaxpr(lambda x: function(x, dimensions=(0,)))(x))
