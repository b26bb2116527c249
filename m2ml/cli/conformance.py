"""``m2ml conformance``: run the conformance kit on a backend and print what it supports."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    from rich.progress import Progress

    from m2ml.equivalence.conformance import Result, Subject


def command(
    backend: Annotated[str, typer.Argument(help="Name of a backend; `m2ml backends` lists them.", metavar="NAME")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every result to this file.", metavar="FILE", dir_okay=False)
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Run these parts of the suite only.", metavar="PART")] = None,
    examples: Annotated[int, typer.Option(help="Examples drawn per primitive.", min=1)] = 20,
    timeout: Annotated[float, typer.Option(help="Seconds after which a call in a thread hangs.", min=0.1)] = 60.0,
    jax_cases: Annotated[bool, typer.Option("--jax-cases", help="Run JAX's own primitive cases instead.")] = False,
    transform: Annotated[
        list[str] | None, typer.Option(help="With --jax-cases: none, vmap or grad; once for each.", metavar="NAME")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="With --jax-cases: these groups of cases only.", metavar="GROUP")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --jax-cases: so many cases of each group.", min=1)] = None,
) -> None:
    """Run m2ml's conformance suite on a backend: what it supports, what it declares it does not, what fails.

    The same checks as `pytest --m2ml-backend NAME`. Exits with 1 when a check fails that no declared gap explains, or
    when something works that is declared as a gap.

    Examples: m2ml conformance mlx --json mlx.json; m2ml conformance mlx --jax-cases --transform vmap
    """
    import faulthandler

    if jax_cases:
        with plain_errors():
            failed = _jax_cases(backend, transform or ["none"], group, limit, json_file)
        raise typer.Exit(failed)
    with plain_errors():
        from m2ml.equivalence.conformance import Subject, as_json, support_table
        from m2ml.plugins import registry

        faulthandler.enable(sys.__stderr__ or 2)
        subject = Subject(registry.get(backend), examples, timeout)
        results = _run(subject, part or ())
        if json_file:
            json_file.write_text(json.dumps(as_json(subject.backend, results), indent=1) + "\n")
        typer.echo(support_table(subject.backend, results, complete=not part))
    raise typer.Exit(any(result.outcome == "failed" for result in results))


def _run(subject: Subject, parts: list[str] | tuple[str, ...]) -> list[Result]:
    """Run the checks with a bar that names the one under way."""
    from m2ml.equivalence.conformance import run_check, suite
    from m2ml.errors import M2mlError

    checks = suite(subject)
    known = list(dict.fromkeys(check.part for check in checks))
    unknown = set(parts) - set(known)
    if unknown:
        raise M2mlError(f"there is no part {', '.join(sorted(unknown))} of the suite; its parts are {', '.join(known)}")
    chosen = [check for check in checks if not parts or check.part in parts]
    results = []
    with _display() as display:
        task = display.add_task("", total=len(chosen))
        for check in chosen:
            display.update(task, description=check.id)
            results.append(run_check(check, subject))
            display.advance(task)
    return results


def _jax_cases(
    backend: str, transforms: list[str], groups: list[str] | None, limit: int | None, json_file: Path | None
) -> bool:
    """Run JAX's cases, print their table, and say whether one failed that no gap explains."""
    from m2ml.equivalence import jax_cases
    from m2ml.errors import M2mlError

    unknown = [name for name in transforms if name not in jax_cases.TRANSFORMS]
    if unknown:
        raise M2mlError(f"there is no transform {unknown[0]!r}; there are {', '.join(jax_cases.TRANSFORMS)}")
    results = []
    for transform in jax_cases.TRANSFORMS:
        if transform in transforms:
            with _display() as display:
                task = display.add_task(transform, total=None)

                def shown(group: str, done: int, total: int, task: Any = task, display: Any = display) -> None:
                    display.update(task, description=group, completed=done, total=total)

                results += jax_cases.run(backend, transform=transform, groups=groups, limit=limit, progress=shown)
    if json_file:
        json_file.write_text(
            json.dumps([dataclasses.asdict(result) for result in results], indent=1, default=str) + "\n"
        )
    typer.echo(jax_cases.table(results))
    return any(result.failed for result in results)


def _display() -> Progress:
    """Bars on standard error, so that standard output holds the table alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32.32}"), BarColumn(bar_width=16), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
