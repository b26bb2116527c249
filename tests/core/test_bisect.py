"""Bisection: the first equation outside its bound is named, in loops, in ops, and where only compiling goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml import ops
from m2ml.equivalence.bisect import first_disagreement
from m2ml.plugins import registry

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def program_of(fn, *args):
    return m2ml.jit(fn).program(*args)


@pytest.fixture
def broken(monkeypatch):
    """Makes the equations of one primitive wrong on cpu; ``when`` may choose among their inputs."""
    cpu = registry.get("cpu")
    right = cpu.apply

    def break_(primitive, wrong, when=lambda equation, arrays: True):
        def apply(equation, arrays):
            outs = right(equation, arrays)
            return [wrong(y) for y in outs] if equation.name == primitive and when(equation, arrays) else outs

        monkeypatch.setattr(cpu, "apply", apply)

    return break_


def found(fn, *args):
    return first_disagreement(program_of(fn, *args), [np.asarray(x) for x in args], "cpu")


def layers(x):
    h = jnp.tanh(x)
    return jnp.sum(jnp.exp(h) * jnp.sin(h))


def test_nothing_is_found_where_every_backend_is_right():
    for backend in ("cpu", "mlx"):
        assert first_disagreement(program_of(layers, X), [X], backend) is None


@pytest.mark.parametrize("primitive", ["tanh", "exp", "sin", "mul", "reduce_sum"])
def test_the_first_wrong_equation_is_named_with_its_line(broken, primitive):
    broken(primitive, lambda y: y * (1 + 1e-5))
    divergence = found(layers, X)
    assert (divergence.primitive, divergence.path, divergence.how) == (primitive, "", "alone")
    assert "test_bisect.py:" in divergence.source
    assert divergence.equation.startswith(f"{primitive}(float32[5,4]")
    assert divergence.output.worst > 1


def test_the_line_is_the_users_where_a_plugin_traces_the_equation(broken):
    """A plugin installed as editable, like those of this repository, lies where the user's own code may lie."""
    import m2ml_mlx

    traced = {}
    exec(compile("def doubled(x):\n    return x * 2", m2ml_mlx.__file__, "exec"), traced)
    broken("mul", lambda y: y * (1 + 1e-5))
    assert "test_bisect.py:" in found(lambda x: traced["doubled"](x), X).source


def test_only_the_wrong_one_of_equal_primitives_is_named(broken):
    broken("add", lambda y: y + 1, when=lambda equation, arrays: equation.shape == (4, 4))
    divergence = found(lambda x: jnp.sum((x + x).T @ (x + 1) + 1.0), X)
    assert divergence.equation.startswith("add(float32[4,4]")


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_the_report_of_a_disagreeing_compare_names_it(monkeypatch, backend):
    engine = registry.get(backend)
    right_compile, right_apply = engine.compile, engine.apply

    def compile_(program):
        return lambda *args: [
            engine.from_host(engine.to_host(y) * np.float32(2)) for y in right_compile(program)(*args)
        ]

    def apply(equation, arrays):
        outs = right_apply(equation, arrays)
        return [engine.from_host(engine.to_host(y) * np.float32(2)) for y in outs] if equation.name == "exp" else outs

    monkeypatch.setattr(engine, "compile", compile_)
    monkeypatch.setattr(engine, "apply", apply)
    report = m2ml.compare(layers, X, backends=[backend])
    assert report.backends[0].divergence.primitive == "exp"
    with pytest.raises(
        m2ml.Disagreement, match=r"first equation outside its bound is exp\(float32\[5,4\]\) at .*py:\d"
    ):
        report.check()


def scanned(x):
    return jax.lax.scan(lambda c, t: (jnp.sin(c) + t, c), x[0], x, reverse=True)


def looped(x):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1]) + 1), (0, x))[1]


def branched(x):
    return jax.lax.cond(jnp.sum(x) > 1e6, jnp.cos, lambda x: jnp.sin(x) + 1, x)


@pytest.mark.parametrize(
    ("fn", "when", "path"),
    [
        (scanned, lambda equation, arrays: np.allclose(arrays[0], np.asarray(X[0])), "iteration 4 of scan"),
        (looped, lambda equation, arrays: True, "iteration 0 of while"),
        (branched, lambda equation, arrays: True, "branch 0 of cond"),
    ],
)
def test_bodies_of_loops_and_branches_are_entered(monkeypatch, broken, fn, when, path):
    cpu = registry.get("cpu")
    broken("sin", lambda y: y * 1.001, when)
    step = cpu.apply

    def whole_loops_are_wrong(equation, arrays):
        outs = step(equation, arrays)
        return [y + 1 for y in outs] if equation.name in ("scan", "while", "cond") else outs

    monkeypatch.setattr(cpu, "apply", whole_loops_are_wrong)
    divergence = found(fn, X)
    assert (divergence.primitive, divergence.path) == ("sin", path)


def test_a_loop_whose_body_is_right_is_named_itself(broken):
    broken("scan", lambda y: y + 1)
    divergence = found(scanned, X)
    assert (divergence.primitive, divergence.path) == ("scan", "")


def test_a_fault_that_a_loop_hides_is_found_by_entering_it(broken):
    """Wrong where the body is run alone, right where the loop is run as one equation."""
    broken("cos", lambda y: y * 1.001)
    divergence = found(lambda x: jax.lax.fori_loop(0, 2, lambda i, c: jnp.cos(c), x), X)
    assert (divergence.primitive, divergence.path) == ("cos", "iteration 0 of scan")


@pytest.mark.parametrize("last", ["tanh", "exp", "sin", "mul", "reduce_sum"])
def test_a_fault_of_compiling_is_located_by_beginnings_of_the_program(monkeypatch, last):
    cpu = registry.get("cpu")
    right = cpu.compile

    def compile_(program):
        run = right(program)
        wrong = any(equation.name == last for equation in program.code.equations())
        return lambda *args: [y + 1 if wrong else y for y in run(*args)]

    monkeypatch.setattr(cpu, "compile", compile_)
    divergence = found(layers, X)
    assert (divergence.primitive, divergence.how) == (last, "compiled")
    assert "every equation alone is inside its bound" in str(divergence)


def test_a_fault_that_only_the_whole_program_has_is_said_to_be_one(monkeypatch):
    cpu = registry.get("cpu")
    right, program = cpu.compile, program_of(layers, X)
    monkeypatch.setattr(
        cpu, "compile", lambda p: (lambda *args: [y + 1 for y in right(p)(*args)]) if p is program else right(p)
    )
    divergence = first_disagreement(program, [X], "cpu")
    assert (divergence.primitive, divergence.how) == ("reduce_sum", "whole")


def test_donated_buffers_are_donated_while_bisecting(monkeypatch):
    cpu, seen = registry.get("cpu"), []
    right = cpu.compile

    def compile_(program):
        seen.append(program.donated)
        return lambda *args: [y + 1 for y in right(program)(*args)]

    monkeypatch.setattr(cpu, "compile", compile_)
    jitted = m2ml.jit(lambda x: jnp.sin(x) * 2, donate_argnames="x")
    assert first_disagreement(jitted.program(X), [X], "cpu").how == "compiled"
    assert set(seen) == {(True,)}


def test_an_op_is_held_against_its_definition_with_its_kernel(monkeypatch):
    monkeypatch.setenv("M2ML_KERNELS", "0")  # nothing needs to be compiled for a fault that is planted
    cpu = registry.get("cpu")
    right = cpu.compile

    def compile_(program):
        wrong = 1.001 if "m2ml_op" in str(program.jaxpr) else 1.0
        return lambda *args: [y * wrong for y in right(program)(*args)]

    monkeypatch.setattr(cpu, "compile", compile_)
    divergence = found(lambda x: jnp.cos(ops.rms_norm(jnp.sin(x))), X)
    assert (divergence.primitive, divergence.how) == ("m2ml.rms_norm", "alone")


def looped_norms(x):
    def turn(_, y):
        return ops.rms_norm(y, jnp.full(y.shape[-1], 0.9, y.dtype)) + jnp.sin(x)

    return jnp.cos(jax.lax.fori_loop(0, 3, turn, x))


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_ops_in_a_loop_are_held_with_their_kernels(backend):
    assert first_disagreement(program_of(looped_norms, X), [X], backend) is None


def test_a_wrong_op_in_a_loop_is_named(monkeypatch):
    cpu = registry.get("cpu")
    right = cpu.compile

    def compile_(program):
        wrong = 1.001 if "m2ml_op" in str(program.jaxpr) else 1.0
        return lambda *args: [y * wrong if y.dtype == np.float32 else y for y in right(program)(*args)]

    monkeypatch.setattr(cpu, "compile", compile_)
    divergence = found(looped_norms, X)
    assert divergence.primitive == "m2ml.rms_norm"
    assert divergence.path == "iteration 0 of scan"


def test_an_equation_that_fails_is_named_with_what_it_said(broken):
    def fail(y):
        raise RuntimeError("no memory\nfor this")

    broken("exp", fail)
    divergence = found(layers, X)
    assert divergence.primitive == "exp"
    assert "RuntimeError: no memory for this" in str(divergence)


def test_factorisations_are_held_to_what_defines_them(broken):
    """Another sign of an eigenvector is right; another length is not."""
    symmetric = X.T @ X
    broken("eigh", lambda y: -y if y.ndim == 2 else y)
    assert found(lambda a: jnp.linalg.eigh(a, symmetrize_input=False)[0], symmetric) is None
    broken("eigh", lambda y: 1.1 * y if y.ndim == 2 else y)
    divergence = found(lambda a: jnp.linalg.eigh(a, symmetrize_input=False)[0], symmetric)
    assert divergence.primitive == "eigh"
