"""``m2ml verify``: what the owner of a Mac runs, and attaches to an issue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    from m2ml.cli.verification import Runner
    from m2ml.cli.verify_report import Outcome, Report, Subject


def command(
    backend: Annotated[
        list[str] | None, typer.Option(help="Verify this backend; may be repeated. Those with a GPU if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the report.")] = Path("m2ml-verify"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of hours: fewer checks, no benchmarks.")
    ] = False,
    benchmarks: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of benchmark programs; those of a checkout if not given.")
    ] = Path("benchmarks"),
) -> None:
    """Verify m2ml on this machine and write one report, as JSON and Markdown.

    Runs the conformance kit and the demo on every backend with a GPU, in each way in which it can run here (every
    provider of JAX that is installed on a Mac), and the benchmarks of a checkout, each in a process of its own with a
    time limit. The report has the hardware, versions and results, and no personal data. Exits with 1 when something
    fails.

    Examples: m2ml verify; m2ml verify --backend mlx --quick
    """
    with plain_errors():
        from m2ml.cli.verification import run_command
        from m2ml.errors import BackendUnavailable

        report = verify(backend or [], out, quick, benchmarks, run_command)
        if not report.subjects:
            raise BackendUnavailable("no backend here has a GPU; name one with --backend, or see `m2ml doctor`")
    if not report.ok:
        raise typer.Exit(1)


def verify(asked: list[str], out: Path, quick: bool, benchmarks: Path, run: Runner) -> Report:
    """Run every step with ``run`` and write the report after each."""
    from m2ml.cli import verification, verify_report
    from m2ml.plugins import registry

    for name in asked:
        registry.about(name) if name in registry.names() else registry.get(name)
    report = verify_report.new_report()
    report.subjects = verification.find_subjects(asked, run)
    for subject in report.subjects:
        _verify(subject, report, out, quick, run)
    if report.subjects and not quick:
        for step in verification.benchmark_steps(benchmarks):
            report.benchmarks.append(_tell("benchmarks", verification.outcome_of(step, {}, run)))
            verify_report.write(report, out)
    report.complete = True
    if report.subjects:
        paths = verify_report.write(report, out)
        typer.echo(f"wrote {' and '.join(map(str, paths))}")
    return report


def _verify(subject: Subject, report: Report, out: Path, quick: bool, run: Runner) -> None:
    from m2ml.cli import verification, verify_report

    if subject.reason:
        typer.echo(f"{subject.label}: not run: {subject.reason}")
        subject.steps.append(verify_report.Outcome("start", "failed", said=subject.reason))
        verify_report.write(report, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    for step in verification.steps_of(subject, out, quick):
        typer.echo(f"{subject.label}: {step.name} ...")
        subject.steps.append(_tell(subject.label, verification.outcome_of(step, subject.environment, run)))
        verify_report.write(report, out)


def _tell(label: str, outcome: Outcome) -> Outcome:
    typer.echo(f"{label}: {outcome.name}: {outcome.outcome} in {outcome.seconds:g} s {outcome.said}".rstrip())
    return outcome
