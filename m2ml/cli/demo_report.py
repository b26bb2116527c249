"""What the demo shows and writes: tables, a sample of text, test accuracy, a picture and a JSON report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import m2ml
from m2ml.models import parameter_count
from m2ml.plugins import registry
from m2ml.training.agreement import Agreement
from m2ml.training.evaluate import accuracy, generate
from m2ml.training.report import Panel, write_curves, write_json
from m2ml.training.session import Session
from m2ml.training.tasks import Task

#: Characters of text that the trained GPT writes.
SAMPLE = 240


@dataclass
class Study:
    """One task trained on several backends; ``failures`` says why some did not finish."""

    task: Task
    sessions: dict[str, Session] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None

    def agrees(self, name: str) -> bool | None:
        """Whether a backend's loss curve lies within the bound; None for the reference itself or without a bound."""
        if self.agreement is None or name == "reference":
            return None
        return self.agreement.share(self.sessions[name].losses) <= 1

    def verdict(self, name: str) -> tuple[float, float] | None:
        """A backend's largest difference from the reference, and its largest share of the bound."""
        if self.agreement is None or self.agrees(name) is None:
            return None
        losses = self.sessions[name].losses
        return self.agreement.difference(losses), self.agreement.share(losses)

    @property
    def ok(self) -> bool:
        return not self.failures and all(self.agrees(name) is not False for name in self.sessions)

    @cached_property
    def result(self) -> dict[str, Any]:
        """What the longest and fastest run can do: text for a GPT, test accuracy for a CNN."""
        if not self.sessions:
            return {}
        best = max(self.sessions.values(), key=lambda s: (s.step, s.speed.steps_per_second or 0))
        if self.task.name == "gpt":
            return {
                "by": best.backend,
                "text": generate(self.task, best.state.params, backend=best.backend, length=SAMPLE),
            }
        return {"by": best.backend, "test_accuracy": accuracy(self.task, best.state.params, backend=best.backend)}


def title(task: Task) -> str:
    """``gpt of 106,000 parameters on Shakespeare``."""
    return f"{task.name.upper()} of {parameter_count(task.model.shapes()):,} parameters on {task.data.name}"


def device_of(name: str) -> str:
    return str(registry.get(name).devices()[0].name)


def show(studies: Sequence[Study], console: Console) -> None:
    """Print a table per study, then what the trained models can do."""
    for study in studies:
        console.print(_table(study))
    for study in studies:
        if "text" in study.result:
            console.print(f"\nThe GPT trained on {study.result['by']} writes:")
            console.print(study.result["text"].strip())
        elif study.result:
            images = len(study.task.data.test[1])
            share = f"{study.result['test_accuracy']:.1%}"
            console.print(f"\nThe CNN trained on {study.result['by']} names {share} of {images:,} test images rightly.")


def _table(study: Study) -> Table:
    task, agreement = study.task, study.agreement
    table = Table(
        title=title(task), title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    if agreement:
        table.caption = (
            f"Compared are the losses of the first {agreement.steps} steps;"
            " the bound is what rounding alone can do to them, with the share of it that the difference takes."
        )
    table.add_column("backend", no_wrap=True)
    table.add_column("engine and\ndevice")
    for name in (
        "steps",
        "steps/s",
        f"{task.unit}/s",
        "final\nloss",
        "largest\ndifference",
        "within\nbound",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name, session in study.sessions.items():
        speed = session.speed.steps_per_second
        rates = (f"{speed:,.1f}", f"{speed * task.units_per_step:,.0f}") if speed else ("-", "-")
        row = (str(session.step), *rates, f"{session.losses[-1]:.4f}", *_verdict(study, name))
        table.add_row(name, device_of(name), *row)
    for name, reason in study.failures.items():
        table.add_row(name, f"failed: {reason}")
    return table


def _verdict(study: Study, name: str) -> tuple[str, str]:
    verdict = study.verdict(name)
    if verdict is None:
        return "-", "-"
    difference, share = verdict
    return f"{difference:.1e}", f"{'yes' if study.agrees(name) else 'NO'} ({share:.0%})"


def write(studies: Sequence[Study], folder: Path, *, seconds: float) -> list[Path]:
    """Write ``loss.png`` and ``report.json`` into ``folder``; gives their paths."""
    picture, report = folder / "loss.png", folder / "report.json"
    write_curves(picture, [_panel(study) for study in studies])
    versions = dict(m2ml.doctor().versions)
    write_json(report, {"versions": versions, "seconds": seconds, "models": [_record(study) for study in studies]})
    return [picture, report]


def _panel(study: Study) -> Panel:
    curves = {name: session.losses for name, session in study.sessions.items()}
    bound = study.agreement.bound.allowed if study.agreement else None
    return Panel(title(study.task), curves, "reference" if study.agreement else None, bound)


def _record(study: Study) -> dict[str, Any]:
    return {
        **study.task.record(),
        "result": study.result,
        "allowed_difference": study.agreement.bound.allowed.tolist() if study.agreement else None,
        "backends": {name: _session_record(study, name) for name in study.sessions},
        "failures": study.failures,
    }


def _session_record(study: Study, name: str) -> dict[str, Any]:
    session, verdict = study.sessions[name], study.verdict(name)
    speed = session.speed.steps_per_second
    return {
        "device": device_of(name),
        "steps": session.step,
        "first_step_seconds": session.speed.first_seconds,
        "steps_per_second": speed,
        f"{study.task.unit}_per_second": speed and speed * study.task.units_per_step,
        "losses": session.losses.tolist(),
        "largest_difference": verdict and verdict[0],
        "share_of_bound": verdict and verdict[1],
        "within_bound": study.agrees(name),
    }
