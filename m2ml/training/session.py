"""One training run from its first step, or from a checkpoint, to its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m2ml.training import checkpoint
from m2ml.training.loop import Chunk, Speed, StepFunction, run
from m2ml.training.tasks import Task

Array = np.ndarray[Any, Any]


@dataclass
class Session:
    """A run of ``task`` on ``backend``, with checkpoints in ``folder`` if one is given.

    ``extra`` is added to what the checkpoints record about the run. After `train`, ``step``, ``state`` and ``losses``
    (float32[step], those before a resumption included) are where it ended.
    """

    task: Task
    backend: str
    folder: Path | None = None
    checkpoint_every: int = 100
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step = 0
        self.state: Any = None
        self.losses: Array = np.zeros(0, np.float32)
        self.speed = Speed()

    def resume(self, folder: Path) -> None:
        """Take state and history from the checkpoint in ``folder``, whichever backend wrote it."""
        self.state, self.losses = checkpoint.load(folder, self.task.state_shapes())
        self.step = len(self.losses)

    def train(
        self,
        *,
        end: int | None = None,
        step_function: StepFunction | None = None,
        on_chunk: Callable[[Chunk], None] = lambda chunk: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to step ``end`` (the optimizer's last by default), or until ``should_stop()`` after some chunk.

        ``step_function`` takes the place of the task's step on the backend. A checkpoint is written every
        ``checkpoint_every`` steps and at the end. Raises `Diverged` when the loss stops being finite; the last
        checkpoint stays.
        """
        end = self.task.optimizer.steps if end is None else end
        step_function = step_function or self.task.train_step.on(self.backend)
        if self.state is None:
            self.state = self.task.initial_state()
        stops = range(0, end + 1, self.checkpoint_every)
        saved = None
        for chunk in run(step_function, self.state, self.task.batch, begin=self.step, end=end, stops=stops):
            self.step, self.state = chunk.step, chunk.state
            self.losses = np.concatenate([self.losses, chunk.losses])
            self.speed.add(chunk)
            if chunk.step in stops:
                saved = self.save()
            on_chunk(chunk)
            if should_stop():
                break
        if saved != self.step:
            self.save()

    def save(self) -> int:
        """Write a checkpoint where there is a folder for it; gives the step."""
        if self.folder is not None:
            run_record = {**self.task.record(), **self.extra}
            checkpoint.save(self.folder, self.state, step=self.step, losses=self.losses, run=run_record)
        return self.step
