"""What runs on this machine, what does not, and why."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from m2ml import selection, winners
from m2ml.backend import Backend
from m2ml.cache import cache_folder
from m2ml.plugins import registry


def backends() -> Mapping[str, Backend]:
    """Every backend that runs here, by name."""
    return registry.available()


@dataclass(frozen=True)
class Diagnosis:
    """The report of `doctor`: ``text`` is for people, the other fields for programs.

    ``notes`` are what a backend says of itself: a working one by its method ``diagnose``, such as what compiles its
    kernels, one that does not run by the notes (``add_note``) of the error that its factory raised.
    """

    versions: Mapping[str, str]
    working: Mapping[str, tuple[str, ...]]
    failing: Mapping[str, str]
    default: str
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cache: str = ""

    @property
    def text(self) -> str:
        lines = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        for name, devices in self.working.items():
            chosen = " (default)" if name == self.default else ""
            lines.append(f"{name}{chosen}: {'; '.join(devices)}")
            lines += [f"  {note}" for note in self.notes.get(name, ())]
        for name, reason in self.failing.items():
            lines += [f"{name}: {reason}", *(f"  {note}" for note in self.notes.get(name, ()))]
        lines.append(f"cache: {self.cache}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def doctor() -> Diagnosis:
    """Look at this machine: versions, the devices of every backend, and the reason for each that does not run."""
    versions = {
        "m2ml": _version("m2ml"),
        "Python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        **{name: _version(name) for name in ("jax", "flax", "optax", "mlx", "numpy")},
    }
    working = {name: tuple(f"{d.name} [{d.kind}]" for d in backend.devices()) for name, backend in backends().items()}
    notes = {name: tuple(b.diagnose()) for name, b in backends().items() if hasattr(b, "diagnose")}
    failing = registry.reasons()
    notes |= {name: registry.notes(name) for name in failing}
    tuned = len(list(winners.folder().glob("*.json")))
    kept = f"{cache_folder()}, with {tuned} tuned calls of ops"
    return Diagnosis(versions, working, failing, selection.current(), notes, kept)
