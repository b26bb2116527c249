"""What ``m2ml verify`` does: run the kit, the demo and the benchmarks in processes of their own, and report.

A backend that hangs or dies costs its own step. The report is written again after every step, so that a machine that
goes down with its GPU leaves what was found until then; names of people, machines and folders are taken out of it.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2ml.plugins import registry

#: Packages whose versions are in the report, beside every plugin of JAX.
PACKAGES = ("m2ml", "jax", "jaxlib", "flax", "optax", "mlx", "mlx-metal", "numpy", "ml_dtypes")

#: Environment variables that change what is computed; others are nobody's business.
_VARIABLES = ("MLX_", "METALJAX_", "JAX_", "METAL_PJRT_", "M2ML_")

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


@dataclass
class Outcome:
    """A step in the report: ``outcome`` is ``"passed"``, ``"failed"``, ``"stopped"`` or ``"not run"``."""

    name: str
    outcome: str
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


@dataclass
class Subject:
    """One way of running a backend: ``environment`` chooses it; ``reason`` says why it does not run here."""

    label: str
    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] = ()
    kinds: Sequence[str] = ()
    reason: str = ""
    steps: list[Outcome] = field(default_factory=list)


@dataclass
class Report:
    """Everything that was found; ``complete`` is false until the last step is over."""

    date: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    variables: Mapping[str, str]
    subjects: list[Subject] = field(default_factory=list)
    benchmarks: list[Outcome] = field(default_factory=list)
    complete: bool = False
    format: int = 1

    @property
    def outcomes(self) -> list[Outcome]:
        return [*(step for subject in self.subjects for step in subject.steps), *self.benchmarks]

    @property
    def ok(self) -> bool:
        """Whether something ran and nothing failed."""
        ran = [step.outcome for step in self.outcomes if step.outcome != "not run"]
        return bool(ran) and all(outcome == "passed" for outcome in ran)


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
    if ran.code is None:
        return Outcome(step.name, "stopped", seconds, facts, f"stopped after {step.limit:g} s{_last_words(ran)}")
    if ran.code == 0:
        return Outcome(step.name, "passed", seconds, facts)
    died = f"died of signal {-ran.code}" if ran.code < 0 else f"ended with exit code {ran.code}"
    return Outcome(step.name, "failed", seconds, facts, died + _last_words(ran))


def _last_words(ran: Ran) -> str:
    lines = [line.strip() for line in (ran.errors or ran.output).splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:400]}" if lines else ""


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
        subject.reason = f"its process gave no answer{_last_words(ran)}"
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


# The machine --------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """The processor, its memory and its system."""
    import psutil

    facts = {"system": f"{platform.system()} {platform.release()}", "machine": platform.machine()}
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "hw.model", "kern.osproductversion", "kern.osversion")
        said = run_command(["/usr/sbin/sysctl", *names], {}, 10).output
        facts |= {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in said.splitlines())}
    else:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            facts["processor"] = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return {**facts, "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)}


def versions() -> dict[str, str]:
    """Python, what m2ml stands on, and every plugin of JAX."""
    plugins = {entry.dist.name for entry in importlib.metadata.entry_points(group="jax_plugins") if entry.dist}
    found = {"Python": platform.python_version()}
    for name in (*PACKAGES, *sorted(plugins)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def new_report() -> Report:
    """An empty report of this machine."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    variables = {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)}
    return Report(now, hardware(), versions(), variables)


# Writing ------------------------------------------------------------------------------------------------


def anonymous(value: Any) -> Any:
    """``value`` without the user's name, the machine's, and the folders above the one that is worked in."""
    if isinstance(value, Mapping):
        return {key: anonymous(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(item) for item in value]
    if not isinstance(value, str):
        return value
    for private, public in _private():
        value = value.replace(private, public)
    for word, public in ((_user(), "<user>"), (platform.node(), "<host>")):
        if len(word) > 2:
            value = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", public, value)
    return value


def _private() -> list[tuple[str, str]]:
    folders = [(str(Path.cwd()), "."), (sys.prefix, "<environment>"), (str(Path.home()), "~")]
    return sorted(((path, name) for path, name in folders if len(path) > 1), key=lambda pair: -len(pair[0]))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``verify.json`` and ``verify.md``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = anonymous({**asdict(report), "ok": report.ok})
    texts = {"verify.json": json.dumps(facts, indent=1) + "\n", "verify.md": markdown(facts)}
    for name, text in texts.items():
        partial = folder / f".{name}"
        partial.write_text(text)
        partial.replace(folder / name)
    return folder / "verify.json", folder / "verify.md"


def markdown(facts: Mapping[str, Any]) -> str:
    """The report for people, from what is in the JSON file."""
    state = "passed" if facts["ok"] else "not passed"
    lines = [f"# m2ml verify, {facts['date']}: {state if facts['complete'] else 'not finished'}", ""]
    lines += [f"- {key}: {value}" for key, value in facts["hardware"].items()]
    lines += ["- " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())]
    lines += [f"- {key}={value}" for key, value in facts["variables"].items()]
    for subject in facts["subjects"]:
        lines += ["", f"## {subject['label']}", ""]
        if subject["reason"]:
            lines.append(f"Not run: {subject['reason']}")
            continue
        lines += [f"On {', '.join(subject['devices'])}.", "", *_table(subject["steps"])]
    if facts["benchmarks"]:
        lines += ["", "## Benchmarks", "", *_table(facts["benchmarks"])]
        for step in facts["benchmarks"]:
            lines += ["", f"### {step['name']}", "", "```", str(step["facts"].get("output", "")), "```"]
    return "\n".join(lines) + "\n"


def _table(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = ["| step | outcome | seconds | what was found |", "|---|---|---|---|"]
    for step in steps:
        facts = {k: v for k, v in step["facts"].items() if k not in ("failures", "output")}
        found = [f"{key}: {json.dumps(value) if isinstance(value, dict) else value}" for key, value in facts.items()]
        said = "; ".join([*found, *filter(None, [step["said"]])]).replace("|", "\\|")
        rows.append(f"| {step['name']} | {step['outcome']} | {step['seconds']} | {said} |")
    failures = [failure for step in steps for failure in step["facts"].get("failures", ())]
    return rows + ([""] if failures else []) + [f"- {' '.join(str(failure).split())[:500]}" for failure in failures]
