"""20 steps of AdamW on every backend against the reference, and faults that must be noticed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_tasks import BACKENDS, STEPS, TASKS, trained

import m2ml
from m2ml.training import Agreement, Session
from m2ml.training.agreement import curve_bound


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("name", TASKS)
def test_twenty_steps_stay_within_the_measured_bound(agreement_of, name, backend):
    task, agreement = agreement_of(name)
    assert agreement.steps == STEPS == 20
    assert agreement.share(trained(task, backend).losses) <= 1


def faulty_losses(task, change) -> np.ndarray:
    """The task's curve when ``change`` is applied to the parameters before each step."""
    step_function = task.train_step.on("cpu")
    session = Session(task, "cpu")
    session.train(step_function=lambda state, batch: step_function(change(state), batch))
    return session.losses


def _round_to_bfloat16(state):
    params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), m2ml.get(state.params))
    return type(state)(params, state.opt_state, state.step, state.rng)


def _one_second_moment_is_a_percent_off(state):
    host = m2ml.get(state)
    adam = host.opt_state[1]
    nu = jax.tree.map(np.array, adam.nu)
    leaf = jax.tree.leaves(nu)[0]
    leaf *= np.float32(1.01)
    opt_state = (host.opt_state[0], adam._replace(nu=nu))
    return type(state)(host.params, opt_state, host.step, host.rng)


@pytest.mark.parametrize("fault", [_round_to_bfloat16, _one_second_moment_is_a_percent_off])
@pytest.mark.parametrize("name", TASKS)
def test_planted_faults_are_outside_the_bound(agreement_of, name, fault):
    task, agreement = agreement_of(name)
    assert agreement.share(faulty_losses(task, fault)) > 1


def test_the_bound_never_narrows_with_the_steps():
    exact = np.array([3.0, 2.0, 1.0])
    bound = curve_bound(exact, [exact + np.array([1e-3, 1e-5, 1e-5])])
    assert (np.diff(bound.allowed) >= 0).all()
    agreement = Agreement(bound)
    assert agreement.difference(exact[:2] + np.array([0, 0.25])) == 0.25
    assert agreement.share(exact) == 0
