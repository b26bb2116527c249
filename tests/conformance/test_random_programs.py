"""Random programs: written, read again, and run on cpu and mlx within the reference's bound."""

import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings

import m2ml
import m2ml.ops
from m2ml.equivalence.hunt import Hunt, forget_compiled
from m2ml.equivalence.primitives import load
from m2ml.equivalence.primitives.cases import examples
from m2ml.equivalence.programs import CALLBACKS, DIVISIONS, GENTLE, KEPT, OP, drawable, drawable_ops, palette, programs
from m2ml.equivalence.reproduce import loaded, source_of, with_ops
from m2ml.equivalence.statements import BLOCKS, UNIQUE, Own, Read
from m2ml.kernel import Kernel, kernels
from m2ml.op import ops
from m2ml.plugins import registry
from m2ml.staged import Staged

#: Batches of each backend; XLA compiles every program, which is most of the time on cpu.
BATCHES = {"cpu": (2, 12), "mlx": (8, 25)}


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    yield
    forget_compiled()


@pytest.mark.filterwarnings("ignore::m2ml.FallbackWarning")
@pytest.mark.parametrize("backend", BATCHES)
def test_random_programs_agree_with_the_reference(backend):
    hunt = Hunt(backend, seed=2024)
    batches, size = BATCHES[backend]
    found = [finding for number in range(batches) for finding in hunt.batch(number, size=size)]
    assert not found, "\n".join(finding.source for finding in found)
    assert hunt.counts.programs >= batches * size
    assert hunt.counts.judged > 0.7 * hunt.counts.elements


def each_program(check, batches=3, size=15):
    """``check`` on random programs of other primitives in each batch."""
    for number in range(batches):
        names = palette(random.Random(number), Counter())

        @seed(number)
        @settings(max_examples=size, phases=[Phase.generate], database=None)
        @given(programs(names))
        def run(program):
            check(program)

        run()


def test_a_written_program_is_the_program():
    reference = registry.get("reference")

    def check(program):
        staged = Staged(program).trace(program.arrays, {})
        function, inputs = loaded(source_of(staged.code, program.arrays, "mlx"))
        again = Staged(function).trace(inputs, {})
        exact = reference.run_exact(staged, program.arrays)
        for x, y in zip(exact, reference.run_exact(again, inputs), strict=True):
            assert (x.dtype, x.tobytes()) == (y.dtype, y.tobytes())

    each_program(check)


def written(function, arrays):
    """The source of a function, which is a program when it is read again."""
    source = source_of(with_ops(Staged(function).trace(tuple(arrays), {})), arrays, "cpu")
    again, inputs = loaded(source)
    Staged(again).trace(inputs, {})
    return source


@pytest.mark.parametrize("name", drawable_ops())
def test_an_op_is_drawn_and_written_as_a_call(name):
    @settings(max_examples=1, phases=[Phase.generate], database=None)
    @given(programs([name]))
    def run(program):
        assert f'ops["{name.removeprefix(OP)}"](' in written(program, program.arrays)

    run()


def test_a_gamma_sample_is_written_with_a_typed_key():
    a = np.array([1.5, 2.5], np.float32)

    def sample(a):
        return jax.random.gamma(jax.random.key(3), a)

    function, inputs = loaded(written(sample, [a]))
    np.testing.assert_array_equal(jax.jit(function)(*inputs)[0], jax.jit(sample)(a))


def test_every_op_that_comes_with_m2ml_is_drawn():
    assert {f"{OP}{name}" for name in ops} == set(drawable_ops())


def test_the_backward_op_of_a_gradient_is_written_as_a_call():
    gradient = jax.grad(lambda x: jnp.sum(m2ml.ops.rms_norm(x, None)))
    assert 'ops["rms_norm"].backward(' in written(gradient, [np.ones((2, 3), np.float32)])


def test_a_wrong_kernel_is_found_in_a_random_program(monkeypatch):
    wrong = Kernel("rms_norm", "mlx", "wrong", lambda: lambda x, weight, *, eps: x * 0.9)
    monkeypatch.setitem(kernels._records, ("rms_norm", "mlx"), [wrong])
    monkeypatch.setattr("m2ml.equivalence.hunt.palette", lambda rng, counts, rare: ["m2ml.rms_norm", "add", "mul"])
    found = Hunt("mlx", seed=1).batch(0, size=8)
    assert found
    assert all(finding.key.startswith("mlx m2ml.rms_norm") or "rms_norm" in finding.source for finding in found)
    assert 'ops["rms_norm"]' in found[0].source
    function, inputs = loaded(found[0].source)
    with pytest.raises(m2ml.Disagreement, match="rms_norm"):
        m2ml.compare(function, *inputs, backends=["mlx"]).check()


def test_programs_are_graphs_with_blocks_and_many_primitives():
    blocks, primitives, lengths, edges = Counter(), Counter(), Counter(), 0

    def check(program):
        nonlocal edges
        code = Staged(program).trace(program.arrays, {}).code
        blocks.update(program.blocks)
        primitives.update({equation.name for equation in code.equations()})
        lengths[len(program.statements)] += 1
        made = {slot for step in code.steps for slot in step.outputs}
        edges += sum(slot in made for step in code.steps for slot in step.inputs)

    each_program(check, batches=6)
    assert len(blocks) >= 7
    assert len(primitives) >= 80
    assert max(lengths) >= 8
    assert edges > 10 * sum(lengths.values())


def test_whole_numbers_are_divided_by_arrays_of_the_program_only():
    """A computed divisor may be the constant 0, by which XLA's compiler divides."""
    found = []
    examples(lambda draw: found.append(draw(programs(["div", "rem", "reduce_sum"]))), 40, seed=0)
    calls = [s for program in found for s in program.statements if getattr(s, "name", "") in DIVISIONS]
    whole = [call for call in calls if np.issubdtype(call.avals[0].dtype, np.integer)]
    assert len(whole) > 20
    assert all(isinstance(call.arguments[1], Own) for call in whole)
    assert any(isinstance(call.arguments[1], Read) for call in calls)


def test_every_statement_gives_a_value():
    """A step of AdamW on no leaves gives none, so that a block after it would have nothing to read."""
    found = []
    examples(lambda draw: found.append(draw(programs([f"{OP}adamw_update"]))), 60, seed=0)
    assert len(found) == 60
    assert all(statement.avals for program in found for statement in program.statements)


def test_the_same_seed_gives_the_same_programs():
    def run():
        hunt = Hunt("reference", seed=5)
        seen = []
        hunt.before = seen.append
        hunt.batch(0, size=6)
        return seen

    assert run() == run()


def test_what_came_seldom_is_drawn_first():
    names = drawable()
    often = Counter({name: 100 for name in names if name not in names[:12]})
    drawn = Counter(name for i in range(20) for name in palette(random.Random(i), often))
    assert all(drawn[name] > 15 for name in names[:12])


def test_rare_primitives_are_drawn_seldom_but_are_drawn():
    names = drawable()
    rare = frozenset(names[:20])
    drawn = Counter(name for i in range(60) for name in palette(random.Random(i), Counter(), rare))
    assert 0 < sum(drawn[name] for name in rare) < 0.1 * sum(drawn.values())


def test_tables_name_primitives_that_have_cases():
    assert GENTLE | set(KEPT) | CALLBACKS | DIVISIONS | set(UNIQUE) <= set(load())


def test_every_kind_of_block_transforms_a_simple_body():
    for kind, block in BLOCKS.items():
        outs = block([lambda x: [x * 2.0]] * 2, [np.ones((2, 3), np.float32)], 2)
        assert outs, kind
