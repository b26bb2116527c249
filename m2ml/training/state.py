"""The training state and the pure step that advances it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m2ml import ops

#: A batch: host arrays by name.
Batch = Mapping[str, Any]
#: ``loss(params, batch, key) -> float32[]``; ``key`` draws the step's dropout masks.
Loss = Callable[[Any, Batch, jax.Array], jax.Array]

#: Integer arithmetic: the same bits on every backend, and in every version of JAX.
_KEY_IMPL = "threefry2x32"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on: ``step`` is int32[]; ``rng`` is uint32[2], the data of a key that stays."""

    params: Any
    opt_state: Any
    step: Any
    rng: Any


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with linear warm-up and cosine decay over ``steps``.

    The rate climbs to ``learning_rate`` in the first twentieth of the steps (20 of them at least, half of a very short
    run) and falls to a tenth of it; weights decay only in arrays of two or more axes; gradients are scaled down to a
    global norm of ``clip_norm``.
    """

    steps: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def build(self) -> optax.GradientTransformation:
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / 10,
            peak_value=self.learning_rate,
            warmup_steps=max(min(max(self.steps // 20, 20), self.steps // 2), 1),
            decay_steps=max(self.steps, 2),
            end_value=self.learning_rate / 10,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            ops.adamw(schedule, b2=0.95, weight_decay=self.weight_decay, mask=_decayed),
        )


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def make_init(init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation) -> Callable[[Any], TrainState]:
    """``start(seed) -> TrainState`` from ``init(key) -> params``; a pure function for `m2ml.jit`."""

    def start(seed: Any) -> TrainState:
        params_key, rng = jax.random.split(jax.random.key(seed, impl=_KEY_IMPL))
        params = init(params_key)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key_data(rng))

    return start


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """``train_step(state, batch) -> (new state, loss)``, a pure function for `m2ml.jit` with ``state`` donated.

    The dropout key of a step is ``fold_in(rng, step)``, so a resumed run draws the masks an unbroken one would.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng, impl=_KEY_IMPL), state.step)
        value, gradients = jax.value_and_grad(loss)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1, state.rng), value

    return train_step
