"""How far the loss curve of a correct engine may be from the reference's: measured, not chosen.

The reference trains several times more from the same state and data, with the result of every equation moved by the
rounding error a float32 engine may make in it. What the curves then differ by is what rounding alone can do to this
model, on this data, after this many steps; training amplifies it, and so no fixed tolerance would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from m2ml.compat import is_key
from m2ml.equivalence import Bound, Perturbation, bound_of
from m2ml.plugins import registry
from m2ml.training.loop import StepFunction, run
from m2ml.training.tasks import Task

Array = np.ndarray[Any, Any]

#: Perturbed runs of the reference.
RUNS = 3


def perturbed_step(task: Task, seed: int) -> StepFunction:
    """``task``'s train step on the reference, with the result of each equation moved by its rounding error."""
    reference: Any = registry.get("reference")
    perturbation = Perturbation(np.random.default_rng(seed), reference.apply)
    program = task.train_step.program(task.state_shapes(), task.batch(0))
    execute = type(reference)(perturbation).compile(program)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        outs = execute(*map(_physical, jax.tree.leaves((state, batch))))
        result: tuple[Any, Any] = jax.tree.unflatten(program.out_tree, outs)
        return result

    return step


def _physical(leaf: Any) -> Array:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf.dtype) else leaf)


@dataclass(frozen=True)
class Agreement:
    """The reference's curve and how far from it each step's loss may be; ``bound`` has the shape float64[steps]."""

    bound: Bound

    @property
    def steps(self) -> int:
        return len(self.bound.expected)

    def difference(self, losses: Array) -> float:
        """The largest difference from the reference over the steps that both made."""
        return float(np.max(self._distance(losses)[0]))

    def share(self, losses: Array) -> float:
        """The largest difference in units of its step's bound: at most 1 for a correct engine."""
        distance, allowed = self._distance(losses)
        return float(np.max(distance / allowed))

    def _distance(self, losses: Array) -> tuple[Array, Array]:
        both = min(self.steps, len(losses))
        return np.abs(losses[:both] - self.bound.expected[:both]), self.bound.allowed[:both]


def measure(
    task: Task, reference_losses: Array, *, runs: int = RUNS, on_step: Callable[[], None] = lambda: None
) -> Agreement:
    """Measure the bound of ``task``'s loss curve around ``reference_losses``, float32[steps], from step 0."""
    curves: list[Array] = []
    for seed in range(runs):
        losses: list[Array] = []
        for chunk in run(
            perturbed_step(task, seed), task.initial_state(), task.batch, begin=0, end=len(reference_losses)
        ):
            losses.append(chunk.losses)
            for _ in chunk.losses:
                on_step()
        curves.append(np.concatenate(losses).astype(float))
    return Agreement(curve_bound(reference_losses.astype(float), curves))


def curve_bound(exact: Array, perturbed: Sequence[Array]) -> Bound:
    """The bound of a curve. It never narrows with the steps: what one step allowed, every later one does too."""
    bound = bound_of(np.float32, exact, perturbed)
    return Bound(exact, np.maximum.accumulate(bound.allowed), bound.unstable, bound.dtype)
