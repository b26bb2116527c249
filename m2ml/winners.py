"""Which implementation of an op was measured to be fastest: what `m2ml.tune` remembers and selection reads.

One file for each call of an op, named after everything that its times may depend on; it is written whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax

from m2ml.cache import cache_folder, write_json

#: The name of an op's definition beside those of its kernels.
DEFINITION = "definition"


@dataclass(frozen=True)
class Key:
    """A call of an op on a device: types of arrays, static arguments, and the kernels there were to choose from."""

    op: str
    backend: str
    device: str
    arrays: tuple[str, ...]
    call: str
    kernels: tuple[tuple[str, str], ...]

    @property
    def path(self) -> Path:
        """The file of such a call."""
        text = json.dumps([asdict(self), processor(), jax.__version__], sort_keys=True)
        return folder() / f"{self.op}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True)
class Measured:
    """Seconds per call of each implementation that ran, what went wrong with the others, and the fastest one's name."""

    winner: str
    times: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def says(self, name: str) -> str:
        """Why the implementation of that name is not the winner, or "" where it was not measured or is it."""
        if name in self.failed:
            return f"when it was measured it failed: {self.failed[name]}"
        if name not in self.times or name == self.winner:
            return ""
        slower, least = self.times[name], self.times[self.winner]
        return f"measured {milliseconds(slower)}, {self.winner} {milliseconds(least)}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def folder() -> Path:
    return cache_folder() / "tuned"


def recall(key: Key) -> Measured | None:
    """What is remembered of such a call, or None; a file that cannot be read is as good as absent."""
    try:
        found = json.loads(key.path.read_text())
        measured = Measured(str(found["winner"]), dict(found["times"]), dict(found["failed"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return measured if measured.winner in measured.times else None


def remember(key: Key, measured: Measured) -> None:
    """Keep it for this process and others. Raises OSError where the cache folder cannot be written."""
    write_json(key.path, {**asdict(measured), "call": asdict(key), "processor": processor()})


@functools.cache
def processor() -> str:
    """The model of this machine's processor and how many there are."""
    model = platform.processor()
    told = Path("/proc/cpuinfo")
    if told.exists():
        lines = [line.partition(":")[2].strip() for line in told.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    elif sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        model = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or model
    return f"{platform.machine()} {model} x {os.cpu_count()}"
