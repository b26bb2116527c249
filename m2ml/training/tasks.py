"""What can be trained: a model, its data, its loss and its batches, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml import ops
from m2ml.data import Images, Text
from m2ml.models import CNN, GPT, CNNConfig, Functional, GPTConfig, functional
from m2ml.training.state import Batch, OptimizerConfig, TrainState, make_init, make_train_step


@dataclass(frozen=True, eq=False)
class Task:
    """One training run but for the backend and the state: everything that decides its numbers."""

    name: str
    config: Any
    data: Any
    optimizer: OptimizerConfig
    batch_size: int
    seed: int
    model: Functional
    unit: str
    units_per_step: int
    batch: Callable[[int], Batch]

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Mean cross-entropy of the targets, in nats."""
        logits = self.model.apply(params, batch["inputs"], key=key)
        return jnp.mean(ops.softmax_cross_entropy(logits, batch["targets"]))

    @cached_property
    def train_step(self) -> m2ml.Jitted[..., tuple[TrainState, jax.Array]]:
        """``train_step(state, batch) -> (state, loss)`` for any backend; the state is donated."""
        return m2ml.jit(make_train_step(self.loss, self.optimizer.build()), donate_argnames=("state",))

    @cached_property
    def start(self) -> m2ml.Jitted[..., TrainState]:
        """``start(seed) -> state`` for any backend."""
        return m2ml.jit(make_init(self.model.init, self.optimizer.build()))

    def initial_state(self) -> TrainState:
        """The state of step 0 as NumPy arrays: the same for every backend, because one of them makes it."""
        state: TrainState = m2ml.get(self.start.on("cpu")(np.uint32(self.seed)))
        return state

    def state_shapes(self) -> TrainState:
        """The state's shapes and dtypes, without computing it."""
        shapes: TrainState = jax.eval_shape(make_init(self.model.init, self.optimizer.build()), np.uint32(self.seed))
        return shapes

    def record(self) -> Mapping[str, Any]:
        """What a checkpoint must say to make this task again: plain JSON."""
        return {
            "task": self.name,
            "model": dataclasses.asdict(self.config),
            "optimizer": dataclasses.asdict(self.optimizer),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "data": {"name": self.data.name, "fingerprint": self.data.fingerprint},
        }


def gpt_task(text: Text, config: GPTConfig, *, optimizer: OptimizerConfig, batch_size: int, seed: int) -> Task:
    """Predict the next character of ``text``. Raises `m2ml.data.DataError` when the text is too short."""
    text.check_length(config.context)

    def batch(step: int) -> Batch:
        return text.batch(seed, step, batch_size=batch_size, context=config.context)

    model = functional(GPT, config)
    return Task("gpt", config, text, optimizer, batch_size, seed, model, "tokens", batch_size * config.context, batch)


def cnn_task(images: Images, config: CNNConfig, *, optimizer: OptimizerConfig, batch_size: int, seed: int) -> Task:
    """Tell the classes of ``images`` apart. Raises `m2ml.data.DataError` when there is not one batch of them."""
    images.check_length(batch_size)

    def batch(step: int) -> Batch:
        return images.batch(seed, step, batch_size=batch_size)

    return Task(
        "cnn", config, images, optimizer, batch_size, seed, functional(CNN, config), "images", batch_size, batch
    )
