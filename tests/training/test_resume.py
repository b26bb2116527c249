from __future__ import annotations

import jax
import numpy as np
import pytest
from training_tasks import BACKENDS, TASKS, tiny_gpt, trained

import m2ml
from m2ml.training import Diverged, Session, checkpoint
from m2ml.training.checkpoint import named_leaves


def assert_same_bits(left, right) -> None:
    for (name, a), (_, b) in zip(named_leaves(m2ml.get(left)), named_leaves(m2ml.get(right)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, name, backend):
    task = TASKS[name](dropout=0.2)
    whole = trained(task, backend, end=8)
    trained(task, backend, tmp_path, end=3)
    resumed = Session(task, backend, tmp_path)
    resumed.resume(tmp_path)
    resumed.train(end=8)
    assert (resumed.step, len(resumed.losses)) == (8, 8)
    assert_same_bits(whole.state, resumed.state)
    assert whole.losses.tobytes() == resumed.losses.tobytes()
    assert checkpoint.read_record(tmp_path).step == 8


@pytest.mark.parametrize("second", BACKENDS)
def test_any_backend_goes_on_from_anothers_checkpoint(tmp_path, second, agreement_of):
    task, agreement = agreement_of("gpt")
    first = next(name for name in reversed(BACKENDS) if name != second)
    before = trained(task, first, tmp_path, end=10)
    session = Session(task, second)
    session.resume(tmp_path)
    assert_same_bits(before.state, session.state)
    session.train()
    assert len(session.losses) == agreement.steps
    assert agreement.share(session.losses) <= 1


def test_dropout_masks_differ_from_step_to_step_and_repeat_in_a_second_run():
    task = tiny_gpt(dropout=0.2)
    state, batch = task.initial_state(), task.batch(0)
    at_step = [
        float(task.train_step.on("cpu")(jax.tree.map(np.copy, replace_step(state, n)), batch)[1]) for n in (0, 1, 0)
    ]
    assert at_step[0] == at_step[2] != at_step[1]


def replace_step(state, step):
    return type(state)(state.params, state.opt_state, np.int32(step), state.rng)


def saved_step(folder) -> int:
    return checkpoint.read_record(folder).step if checkpoint.exists(folder) else 0


def test_checkpoints_are_written_on_the_way_and_at_the_end(tmp_path):
    steps = []
    session = Session(tiny_gpt(), "cpu", tmp_path, checkpoint_every=3)
    session.train(end=7, on_chunk=lambda chunk: steps.append(saved_step(tmp_path)))
    assert steps[-1] == 6
    assert 3 in steps
    assert checkpoint.read_record(tmp_path).step == 7


def test_a_run_that_is_stopped_ends_at_a_checkpoint(tmp_path):
    session = Session(tiny_gpt(), "cpu", tmp_path)
    session.train(should_stop=lambda: True)
    assert checkpoint.read_record(tmp_path).step == session.step == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    task = tiny_gpt()
    step_function = task.train_step.on("cpu")

    def breaks(state, batch):
        state, loss = step_function(state, batch)
        return state, np.float32("nan") if int(m2ml.get(state.step)) == 6 else loss

    session = Session(task, "cpu", tmp_path, checkpoint_every=2)
    with pytest.raises(Diverged, match="the loss became nan at step 6; train with a smaller learning rate"):
        session.train(end=9, step_function=breaks)
    assert checkpoint.read_record(tmp_path).step == 4
    assert np.isfinite(checkpoint.load(tmp_path, task.state_shapes())[1]).all()
