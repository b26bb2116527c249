"""A text as it is written, and under it, where a terminal watches, how fast that goes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two looks at the speed.
_EVERY = 0.1


@contextlib.contextmanager
def writing(statistics: object) -> Iterator[Callable[[str], None]]:
    """``write(text)`` to standard output. Where standard error is a terminal, a last line there shows ``statistics``.

    It is gone when the block ends.
    """
    if not sys.stderr.isatty():
        yield lambda text: typer.echo(text, nl=False)
        return
    from rich.console import Console

    together = sys.stdout.isatty()
    page = Page(statistics, Console(stderr=not together, highlight=False, markup=False), together=together)
    with page:
        yield page.write


class Page:
    """The display of `writing` on ``console``, which shows the text as well if they are ``together``."""

    def __init__(self, statistics: object, console: Console, *, together: bool) -> None:
        from rich.live import Live

        self._statistics, self._together = statistics, together
        self._line, self._due = "", 0.0
        self._live = Live(
            get_renderable=self._shown,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )

    def __enter__(self) -> Page:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._together:
            self._live.console.print(self._plain(self._line), end="", soft_wrap=True)

    def write(self, text: str) -> None:
        """Whole lines stay above the display; the one that is being written is part of it."""
        if self._together:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._live.console.print(self._plain(line), soft_wrap=True)
        else:
            typer.echo(text, nl=False)
        if time.monotonic() >= self._due:
            self._live.refresh()
            self._due = time.monotonic() + _EVERY

    def _shown(self) -> Any:
        from rich.console import Group

        status = self._plain(f"[{self._statistics}]", "dim")
        return Group(self._plain(self._line), status) if self._line else status

    @staticmethod
    def _plain(text: str, style: str = "") -> Any:
        from rich.text import Text

        return Text(text, style=style)
