"""The report of ``m2ml verify``: its records, the machine it speaks of, and how it is written.

Names of people, machines and folders are taken out of it.
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
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Packages whose versions are in the report, beside every plugin of JAX.
PACKAGES = ("m2ml", "jax", "jaxlib", "flax", "optax", "mlx", "mlx-metal", "numpy", "ml_dtypes")

#: Environment variables that change what is computed; others are nobody's business.
_VARIABLES = ("MLX_", "METALJAX_", "JAX_", "METAL_PJRT_", "M2ML_")


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


# The machine --------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """The processor, its memory and its system."""
    import psutil

    facts = {"system": f"{platform.system()} {platform.release()}", "machine": platform.machine()}
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "hw.model", "kern.osproductversion", "kern.osversion")
        command = ["/usr/sbin/sysctl", *names]
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
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
