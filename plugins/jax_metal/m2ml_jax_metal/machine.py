"""What the ladder needs to know of a machine, as one frozen record: read once here, made up in tests.

Reading it imports no provider and starts nothing: distributions are looked at by their metadata alone.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from m2ml_jax_metal.binaries import SUFFIXES
from m2ml_jax_metal.providers import PROVIDERS

#: The group in which JAX looks for plugins, and what ``sysctl`` is asked.
GROUP = "jax_plugins"
_FACTS = ("kern.osproductversion", "kern.osversion", "machdep.cpu.brand_string", "sysctl.proc_translated")


@dataclass(frozen=True)
class Distribution:
    """An installed distribution: ``platforms`` are the entry points that JAX loads, ``libraries`` its binaries."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    python: str = ""
    platforms: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Machine:
    """A host: ``system`` as ``sys.platform`` and ``arch`` as ``platform.machine`` have them; ``build`` is macOS's.

    ``distributions`` are those that matter here by canonical name; ``environment`` is the process's.
    """

    system: str
    arch: str
    macos: str = ""
    build: str = ""
    chip: str = ""
    translated: bool = False
    python: str = "3.12.0"
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def version(self, distribution: str) -> str:
        """The version of an installed distribution, or ``""``."""
        found = self.distributions.get(distribution)
        return found.version if found else ""


def read_machine() -> Machine:
    """This machine."""
    facts = _sysctl() if sys.platform == "darwin" else {}
    return Machine(
        system=sys.platform,
        arch=platform.machine(),
        macos=facts.get("kern.osproductversion") or platform.mac_ver()[0],
        build=facts.get("kern.osversion", ""),
        chip=facts.get("machdep.cpu.brand_string", ""),
        translated=facts.get("sysctl.proc_translated") == "1",
        python=platform.python_version(),
        distributions=read_distributions(),
        environment=dict(os.environ),
    )


def _sysctl() -> dict[str, str]:
    """What macOS says of itself. A name that it does not know (an Intel Mac translates nothing) is left out."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", *_FACTS], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def read_distributions() -> dict[str, Distribution]:
    """JAX, every plugin of JAX, and the distributions that hold the libraries of known providers."""
    plugins: dict[str, tuple[importlib.metadata.Distribution, list[str]]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.dist is not None:
            name = canonicalize_name(entry.dist.name)
            plugins.setdefault(name, (entry.dist, []))[1].append(entry.name)
    found = {name: _describe(dist, platforms) for name, (dist, platforms) in plugins.items()}
    others = {"jax", "jaxlib", *PROVIDERS, *(name for p in PROVIDERS.values() for name in p.companions)}
    for name in sorted(others - set(found)):
        try:
            found[name] = _describe(importlib.metadata.distribution(name), ())
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _describe(dist: importlib.metadata.Distribution, platforms: Iterable[str]) -> Distribution:
    name = canonicalize_name(dist.name)
    matters = name not in ("jax", "jaxlib")
    files = (dist.files or ()) if matters else ()
    return Distribution(
        name=name,
        version=dist.version,
        requires=tuple(dist.requires or ()) if matters else (),
        python=str(dist.metadata.get("Requires-Python") or ""),
        platforms=tuple(platforms),
        libraries=tuple(Path(str(dist.locate_file(f))) for f in files if f.suffix in SUFFIXES),
    )
