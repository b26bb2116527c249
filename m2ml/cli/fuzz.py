"""``m2ml fuzz``: random programs on a backend, held against the reference."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import make_console, plain_errors

if TYPE_CHECKING:
    from m2ml.equivalence.fuzz import Fuzz, Summary


def command(
    backend: Annotated[str, typer.Option(help="Backend to fuzz; see m2ml backends.")],
    minutes: Annotated[float, typer.Option(min=0, help="How long to go on; Ctrl-C ends it sooner.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Decides the programs.")] = 0,
    programs: Annotated[int | None, typer.Option(min=1, help="Stop after so many programs.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for what is found, one file each.")] = Path(
        "findings"
    ),
) -> None:
    """Run random programs on a backend and hold each against the reference.

    Every disagreement, crash and hang is shrunk and saved as a Python file that reproduces it; the same fault is saved
    once. The exit code is 1 when something was found.

    Example: m2ml fuzz --backend mlx --minutes 10 --seed 1
    """
    from m2ml.errors import M2mlError

    with plain_errors():
        if find_spec("hypothesis") is None:
            raise M2mlError("m2ml fuzz needs hypothesis; install it with: pip install 'm2ml[kit]'")
        from m2ml.equivalence.fuzz import Fuzz
        from m2ml.plugins import registry

        registry.get(backend)
        summary = _watched(Fuzz(backend, seed=seed, out=out), minutes * 60, programs)
    typer.echo(str(summary))
    for key, finding in sorted(summary.findings.items()):
        typer.echo(f"  {finding.kind}: {key}")
    if summary.findings:
        typer.echo(f"written to {out}")
        raise typer.Exit(1)


def _watched(fuzz: Fuzz, seconds: float, programs: int | None) -> Summary:
    """Run with a live line of what has been done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[said]}"), console=make_console()) as display:
        task = display.add_task(fuzz.summary.backend, total=seconds, said="starting")

        def show(summary: Summary) -> None:
            said = (
                f"{summary.counts.programs:,} programs, {summary.rate:.1f}/s, "
                f"{len(summary.counts.primitives)} primitives, {len(summary.findings)} found"
            )
            display.update(task, completed=min(summary.seconds, seconds), said=said)

        return fuzz.run(seconds, programs=programs, on_progress=show)
