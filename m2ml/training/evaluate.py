"""What a trained model can do: text from a GPT, the accuracy of a classifier."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml.data.images import unit_range
from m2ml.training.tasks import Task

#: Images that are classified at a time.
_CHUNK = 250


def generate(
    task: Task,
    params: Any,
    *,
    backend: str,
    length: int,
    prompt: str | None = None,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """``length`` characters that continue ``prompt``, drawn from the model's own probabilities.

    Without a prompt it begins a new line. ``temperature`` divides the logits. The draws are JAX's, so equal
    parameters give equal text on every backend.
    """
    context, text = task.config.context, task.data
    tokens = text.encode(prompt or ("\n" if "\n" in text.vocabulary else text.content[0])).tolist()

    def draw(params: Any, window: Any, last: Any, seed: Any, step: Any) -> jax.Array:
        logits = task.model.apply(params, window)[0, last]
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), step), logits / temperature)

    step_function = m2ml.jit(draw, backend=backend)
    for step in range(length):
        recent = tokens[-context:]
        window = np.zeros((1, context), np.int32)
        window[0, : len(recent)] = recent
        numbers = (np.int32(len(recent) - 1), np.uint32(seed), np.int32(step))
        tokens.append(int(m2ml.get(step_function(params, window, *numbers))))
    return str(text.decode(tokens[-length:])) if length else ""


def accuracy(task: Task, params: Any, *, backend: str) -> float:
    """The share of the test images whose class the model finds."""

    def classify(params: Any, images: Any) -> jax.Array:
        return jnp.argmax(task.model.apply(params, images), axis=-1)

    images, labels = task.data.test
    step_function = m2ml.jit(classify, backend=backend)
    found = [
        m2ml.get(step_function(params, unit_range(images[begin : begin + _CHUNK])))
        for begin in range(0, len(labels), _CHUNK)
    ]
    return float(np.mean(np.concatenate(found) == labels))
