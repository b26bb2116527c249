"""The training loop: a generator of chunks, so that whoever drives it shows, checks and saves what it likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import m2ml
from m2ml.errors import M2mlError
from m2ml.training.state import Batch, TrainState

#: ``step(state, batch) -> (state, loss)`` on some backend.
StepFunction = Callable[[Any, Batch], tuple[Any, Any]]


class Diverged(M2mlError, ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive steps whose losses have been read. ``state`` is the one after ``step`` steps.

    ``losses`` is float32[steps of the chunk]; ``seconds`` they took, waiting for the device included.
    """

    step: int
    state: TrainState
    losses: np.ndarray[Any, Any]
    seconds: float


def run(
    step_function: StepFunction,
    state: Any,
    batch: Callable[[int], Batch],
    *,
    begin: int,
    end: int,
    stops: Collection[int] = (),
    patience: float = 0.25,
) -> Iterator[Chunk]:
    """Train from step ``begin`` to ``end``; yield a chunk every ``patience`` seconds and after each step in ``stops``.

    Reading a loss waits for the device, so it happens once per chunk; the first step is a chunk of its own, since it
    compiles. A chunk's state is donated to the next step: use it before asking for the next chunk. Raises `Diverged`
    at the first loss that is not finite, before the chunk that holds it is yielded.
    """
    pending: list[Any] = []
    since = time.perf_counter()
    for step in range(begin, end):
        state, loss = step_function(state, batch(step))
        pending.append(loss)
        done = step + 1
        if done == begin + 1 or done == end or done in stops or time.perf_counter() - since > patience:
            losses = np.array(m2ml.get(pending), np.float32)
            m2ml.wait(state)
            seconds = time.perf_counter() - since
            _check_finite(losses, done - len(losses))
            yield Chunk(done, state, losses, seconds)
            pending, since = [], time.perf_counter()


def _check_finite(losses: np.ndarray[Any, Any], begin: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise Diverged(
            f"the loss became {losses[bad[0]]} at step {begin + int(bad[0]) + 1};"
            " train with a smaller learning rate, or look for the first NaN with m2ml.jit(debug=True)"
        )


@dataclass
class Speed:
    """Steps per second of the chunks after the first, which compiled."""

    steps: int = 0
    seconds: float = 0.0
    first_seconds: float | None = None

    def add(self, chunk: Chunk) -> None:
        if self.first_seconds is None:
            self.first_seconds = chunk.seconds
        else:
            self.steps += len(chunk.losses)
            self.seconds += chunk.seconds

    @property
    def steps_per_second(self) -> float | None:
        """None until a second chunk has been added."""
        return self.steps / self.seconds if self.seconds else None
