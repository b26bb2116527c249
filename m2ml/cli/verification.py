"""What ``m2ml verify`` does: run the kit, the demo and the benchmarks in processes of their own.

A backend that hangs or dies costs its own step. The report is written again after every step, so that a machine that
goes down with its GPU leaves what was found until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ml.cli.verify_report import Outcome, Subject
from m2ml.errors import how_it_ended, last_words
from m2ml.plugins import registry

#: Parts of the kit that ``quick`` runs.
QUICK_PARTS = ("contract", "dtypes", "programs", "ops", "errors")


@dataclass(frozen=True)
class Ran:
    """What came of a command: ``code`` is None when it was stopped for taking too long."""

    code: int | None
    seconds: float
    output: str = ""
    errors: str = ""


#: ``run(command, environment, limit)``.
Runner = Callable[[Sequence[str], Mapping[str, str], float], Ran]


@dataclass(frozen=True)
class Step:
    """One command, and how to read what it leaves: ``read(ran)`` gives the facts for the report."""

    name: str
    command: Sequence[str]
    limit: float
    read: Callable[[Ran], Mapping[str, Any]] = lambda ran: {}


# Running ------------------------------------------------------------------------------------------------


def run_command(command: Sequence[str], environment: Mapping[str, str], limit: float) -> Ran:
    """Run a command in a process group of its own, which is ended as a whole when the time is over."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return Ran(None, time.perf_counter() - began, output, errors)
    return Ran(process.returncode, time.perf_counter() - began, output, errors)


def outcome_of(step: Step, environment: Mapping[str, str], run: Runner) -> Outcome:
    """Run a step; whatever goes wrong, its outcome says so."""
    ran = run(step.command, environment, step.limit)
    seconds = round(ran.seconds, 1)
    try:
        facts = dict(step.read(ran))
    except (OSError, ValueError, KeyError, TypeError) as error:
        facts = {"unreadable": f"{type(error).__name__}: {error}"}
    said = last_words(ran.errors or ran.output)
    if ran.code is None:
        return Outcome(step.name, "stopped", seconds, facts, f"stopped after {step.limit:g} s{said}")
    if ran.code == 0:
        return Outcome(step.name, "passed", seconds, facts)
    return Outcome(step.name, "failed", seconds, facts, how_it_ended(ran.code) + said)


# What to run --------------------------------------------------------------------------------------------


def find_subjects(asked: Sequence[str], run: Runner) -> list[Subject]:
    """The backends asked for, or those with a GPU, each in every way in which it can run here."""
    found = []
    for name in asked or registry.names():
        variants = registry.variants(name) or {name: {}}
        for label, environment in variants.items():
            subject = Subject(label if label == name else f"{name} by {label}", name, dict(environment))
            _describe(subject, run)
            wanted = "gpu" in subject.kinds or (subject.reason and len(registry.variants(name)) > 0)
            if asked or wanted:
                found.append(subject)
    return found


def _describe(subject: Subject, run: Runner) -> None:
    command = [sys.executable, "-c", f"from {__name__} import describe; describe({subject.backend!r})"]
    ran = run(command, subject.environment, 300)
    try:
        said = json.loads(ran.output.splitlines()[-1])
    except (IndexError, ValueError):
        subject.reason = f"its process gave no answer{last_words(ran.errors or ran.output)}"
        return
    subject.devices, subject.kinds, subject.reason = said["devices"], said["kinds"], said["reason"]


def describe(name: str) -> None:
    """In a process of its own: print the devices of a backend, or why there are none, as JSON."""
    from m2ml.errors import M2mlError

    try:
        devices, reason = registry.get(name).devices(), ""
    except M2mlError as error:
        devices, reason = (), str(error)
    said = {"devices": [d.name for d in devices], "kinds": [d.kind for d in devices], "reason": reason}
    print(json.dumps(said))


def steps_of(subject: Subject, folder: Path, quick: bool) -> Iterator[Step]:
    """The conformance kit and the demo."""
    name = re.sub(r"[^\w.-]+", "-", subject.label)
    kit, demo = folder / f"conformance-{name}.json", folder / f"demo-{name}"
    m2ml = (sys.executable, "-c", "from m2ml.cli import app; app()")
    parts = [word for part in QUICK_PARTS for word in ("--part", part)] if quick else []
    few = ["--examples", "3"] if quick else []
    kit_command = [*m2ml, "conformance", subject.backend, "--json", str(kit), *parts, *few]
    yield Step("conformance kit", kit_command, 900 if quick else 7200, lambda ran: _kit_facts(kit))
    short = ["--gpt-steps", "20", "--cnn-steps", "20", "--compared-steps", "5"] if quick else []
    demo_command = [*m2ml, "demo", "--backend", subject.backend, "--out", str(demo), *short]
    yield Step("demo", demo_command, 900 if quick else 3600, lambda ran: _demo_facts(demo, subject.backend))


def _kit_facts(path: Path) -> Mapping[str, Any]:
    results = json.loads(path.read_text())["results"]
    counts: dict[str, int] = {}
    for result in results:
        counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
    failures = [f"{r['part']}/{r['name']}: {r['message']}" for r in results if r["outcome"] == "failed"]
    return {**counts, "failures": failures}


def _demo_facts(folder: Path, backend: str) -> Mapping[str, Any]:
    facts = {}
    for model in json.loads((folder / "report.json").read_text())["models"]:
        found = model["backends"].get(backend)
        kept = ("device", "steps", "steps_per_second", "share_of_bound", "within_bound")
        facts[model["task"]] = {k: found[k] for k in kept} if found else model["failures"].get(backend)
    return facts


def benchmark_steps(folder: Path) -> list[Step]:
    """Every program of a checkout's benchmarks; none where m2ml is installed as a package."""
    return [
        Step(path.stem, [sys.executable, str(path)], 1800, lambda ran: {"output": ran.output.strip()})
        for path in sorted(folder.glob("bench_*.py"))
    ]
