"""How commands speak: errors in one sentence, warnings in one line, bars for what takes long."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from m2ml.training.loop import Chunk

#: Wide enough for the demo's table where nobody watches (a pipe, a log).
_UNWATCHED_WIDTH = 140


def make_console() -> Console:
    """A console that prints text as it is; its width is the terminal's, or fixed where there is none."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _UNWATCHED_WIDTH
    return console


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors raised on purpose become one line and exit code 2; warnings become one line each."""
    from m2ml.errors import M2mlError

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except M2mlError as error:
            typer.echo(f"m2ml: {error}", err=True)
            raise typer.Exit(2) from error


class Bar:
    """One line of a progress display: a run of ``total`` steps on a backend."""

    def __init__(self, progress: Progress, description: str, total: int, unit: str, units_per_step: int) -> None:
        self._progress, self._unit, self._units_per_step = progress, unit, units_per_step
        self._task = progress.add_task(description, total=total, said="compiling")
        self._began: float | None = None
        self._steps = 0

    def chunk(self, chunk: Chunk) -> None:
        """Advance by a chunk and show its last loss, and the speed since the first chunk, which compiled."""
        speed = ""
        if self._began is None:
            self._began = time.perf_counter()
        else:
            self._steps += len(chunk.losses)
            rate = self._steps * self._units_per_step / max(time.perf_counter() - self._began, 1e-9)
            speed = f"  {rate:,.0f} {self._unit}/s"
        self.advance(len(chunk.losses), f"loss {chunk.losses[-1]:.4f}{speed}")

    def advance(self, steps: int, said: str) -> None:
        self._progress.update(self._task, advance=steps, said=said)

    def finish(self, said: str) -> None:
        self._progress.update(self._task, said=said)


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A live display of bars."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as display:
        yield display
