"""Every op on every backend, by its kernels and by its definition, against the definition in float64."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.ops import (
    Implementation,
    check_gradient,
    check_laws,
    check_layouts,
    check_second_derivative,
    check_transformations,
    check_values,
    check_vmap,
    fault_is_caught,
    implementations,
    in_dtype,
    planted,
    what_ran,
)
from m2ml.kernel import kernels
from m2ml.op import ops
from m2ml.plugins import registry

BACKENDS = ("cpu", "mlx")
DTYPES = (np.float32, jnp.bfloat16, np.float16)


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    yield
    jax.clear_caches()


def sampled(op, every=1, start=0):
    """Every so many of the op's samples, from ``start``."""
    return list(op.samples())[start::every]


def small(op, count=3):
    """The smallest samples that have more than one element, without empty arrays."""
    sizes = [(sum(np.size(x) for x in jax.tree.leaves(s.args)), s) for s in op.samples()]
    return [s for size, s in sorted(sizes, key=lambda pair: pair[0]) if size > 4][:count]


@pytest.fixture
def ran(record_property):
    """Gives the function that notes what ran samples, for the table at the end of the run."""

    def note(op, dtype, samples, on):
        for implementation in on:
            names = what_ran(op, samples, implementation.backend, dtype) if implementation.kernels else None
            counts = Counter(names or ["definition"] * len(samples))
            for known, count in counts.items():
                record_property("ran", (op.name, implementation.backend, np.dtype(dtype).name, known, count))

    return note


@pytest.mark.parametrize("name", sorted(ops))
def test_values(name, ran):
    on, samples = implementations(ops[name], BACKENDS), sampled(ops[name])
    for sample in samples:
        check_values(ops[name], sample, np.float32, on)
    ran(ops[name], np.float32, samples, on)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(ops))
def test_values_in_half_precision(name, dtype, ran):
    on, samples = implementations(ops[name], BACKENDS), sampled(ops[name], 3, DTYPES.index(dtype))
    for sample in samples:
        check_values(ops[name], sample, dtype, on)
    ran(ops[name], dtype, samples, on)


@pytest.mark.parametrize("name", sorted(name for name, op in ops.items() if op.types))
def test_types_are_those_of_the_definition(name):
    """With every residual that its backward pass asks for, too."""
    op = ops[name]
    for dtype, sample in ((dtype, sample) for i, dtype in enumerate(DTYPES) for sample in sampled(op, 3, i)):
        leaves, tree = jax.tree.flatten(in_dtype(sample, dtype))
        avals = [jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype) for x in leaves]
        call, _ = op.bind(jax.tree.unflatten(tree, leaves), sample.static)
        for asked in (call, call.with_static(op.residuals)):
            wanted = jax.eval_shape(lambda *xs, asked=asked: asked.run(op.definition, xs), *avals)
            assert asked.out(avals) == wanted, f"{sample.name} in {np.dtype(dtype).name}"


def few(op, most=5):
    """At most so many samples, from the first to the last."""
    every = list(op.samples())
    return every[:: max(-(-len(every) // most), 4)]


@pytest.mark.parametrize("name", sorted(ops))
def test_laws(name):
    """On a few samples; the slow tests take them all."""
    for on in implementations(ops[name], BACKENDS):
        for sample in few(ops[name]):
            check_laws(ops[name], sample, np.float32, on)


@pytest.mark.parametrize("name", sorted(ops))
def test_gradients(name):
    on = implementations(ops[name], BACKENDS)
    for sample in sampled(ops[name], 4):
        check_gradient(ops[name], sample, np.float32, on)
    for dtype in DTYPES[1:]:
        check_gradient(ops[name], small(ops[name])[-1], dtype, on)


@pytest.mark.parametrize("name", sorted(ops))
def test_vmap(name):
    for sample in small(ops[name], 2):
        check_vmap(ops[name], sample, implementations(ops[name], BACKENDS))


@pytest.mark.parametrize("name", sorted(ops))
def test_second_derivatives(name):
    check_second_derivative(ops[name], small(ops[name])[-1], implementations(ops[name], BACKENDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ops))
def test_laws_and_gradients_on_every_sample(name):
    on = implementations(ops[name], BACKENDS)
    for sample in sampled(ops[name]):
        check_gradient(ops[name], sample, np.float32, on)
        for implementation in on:
            check_laws(ops[name], sample, np.float32, implementation)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ops))
def test_derivatives_through_every_transformation(name):
    check_transformations(ops[name], small(ops[name])[-1], implementations(ops[name], BACKENDS))


def with_kernels_of_mlx():
    return sorted(n for n in ops if any(one.kernels for one in implementations(ops[n], ["mlx"])))


@pytest.mark.parametrize("name", with_kernels_of_mlx())
def test_arrays_that_do_not_lie_row_after_row(name):
    """On mlx, where a transposed array is a view; XLA hands a kernel none."""
    check_layouts(ops[name], small(ops[name])[-1], [Implementation("mlx", True)])


@pytest.mark.parametrize(("name", "fault"), [(n, f) for n in sorted(ops) for f in ops[n].faults])
def test_a_planted_fault_is_caught(name, fault):
    assert fault_is_caught(ops[name], fault, sampled(ops[name]), "mlx"), f"{name}: {fault.__name__} passes for right"


@pytest.mark.parametrize("name", sorted(ops))
def test_an_op_has_laws_and_at_least_six_faults(name):
    assert ops[name].laws
    assert len(ops[name].faults) >= 6
    assert (ops[name].__doc__ or "").strip()
    names = [sample.name for sample in ops[name].samples()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(ops))
def test_each_law_kills_a_fault(name):
    """A law that no wrong version breaks is decoration."""
    wrong = [planted(ops[name], fault) for fault in ops[name].faults]
    for law in ops[name].laws:
        # Every fault on the smallest sample first: most laws need no other.
        assert any(_breaks(one, law, sample) for sample in small(ops[name], 6) for one in wrong), law.__name__


def _breaks(wrong, law, sample):
    wrong.laws = [law]
    try:
        check_laws(wrong, sample, np.float32, Implementation("mlx", False))
    except AssertionError:
        return True
    except ValueError:  # a fault that drops a row may leave too few
        return False
    return False


def registered_here():
    kinds = {name: registry.get(name).devices()[0].kind for name in BACKENDS}
    return [k for k in kernels.all() if k.op in ops and k.backend in kinds and kinds[k.backend] in k.devices]


@pytest.mark.parametrize("kernel", registered_here(), ids=lambda k: f"{k.backend}:{k.name}")
def test_each_kernel_runs_some_sample(kernel):
    """Otherwise the tests above would hold the definition against itself."""
    assert kernel.name in set(what_ran(ops[kernel.op], list(ops[kernel.op].samples()), kernel.backend, np.float32))
