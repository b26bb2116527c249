"""Macs that are not there: machine records, folders that look like installed providers, and JAX platforms on the CPU.

A fake platform is a second CPU client of JAX that is registered under a provider's name; its lowering is the CPU's.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from m2ml_jax_metal.machine import Distribution, Machine
from m2ml_jax_metal.providers import PROVIDERS

HERE = Path(__file__).parent

#: What a release's metadata says of JAX.
REQUIRES = {
    "jax-mps": ("jax<0.12,>=0.11.0", "jaxlib<0.12,>=0.11.0"),
    "metaljax": ("jax<0.12,>=0.11", "ml-dtypes", "numpy"),
    "jax-graft": ("jax>=0.10.0", "jaxlib>=0.10.0", 'metal-pjrt-core==0.0.5; sys_platform == "darwin"'),
    "jax-metal": ("wheel~=0.35", "six>=1.15.0", "jaxlib>=0.4.34", "jax>=0.4.34"),
}

VERSIONS = {name: provider.read_from for name, provider in PROVIDERS.items()}


def distribution(name, version="", *, libraries=(), requires=None):
    """An installed release of a provider, or of JAX."""
    provider = PROVIDERS.get(name)
    return Distribution(
        name,
        version or VERSIONS.get(name, ""),
        requires=REQUIRES.get(name, ()) if requires is None else requires,
        python=">=3.12" if provider and name != "jax-metal" else "",
        platforms=(provider.platform.lower(),) if provider else (),
        libraries=tuple(libraries),
    )


def mac(*providers, jax="0.11.2", macos="27.1", python="3.12.1", chip="Apple M4", environment=(), **more):
    """A Mac with these distributions (names, or `Distribution` records) and a JAX."""
    found = [p if isinstance(p, Distribution) else distribution(p) for p in providers]
    found += [Distribution("jax", jax), Distribution("jaxlib", jax)] if jax else []
    if any(d.name == "jax-graft" for d in found) and not any(d.name == "metal-pjrt-core" for d in found):
        found.append(Distribution("metal-pjrt-core", "0.0.5"))
    machine = Machine(
        "darwin",
        "arm64",
        macos=macos,
        build="27B78",
        chip=chip,
        python=python,
        distributions={d.name: d for d in found},
        environment=dict(environment),
    )
    return replace(machine, **more)


def mach_o(path, macos):
    """A file with the header of a dylib that is built for this macOS."""
    major, minor, patch = (*map(int, macos.split(".")), 0, 0)[:3]
    packed = major << 16 | minor << 8 | patch
    header = struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 6, 2, 24 + 24, 0, 0)
    other, build = struct.pack("<6I", 0x1B, 24, 1, 2, 3, 4), struct.pack("<6I", 0x32, 24, 1, packed, packed, 0)
    path.write_bytes(header + other + build)
    return path


def metal_library(path, macos):
    """A file with the header of a Metal library that targets this macOS."""
    major, minor, patch = (*map(int, macos.split(".")), 0, 0)[:3]
    path.write_bytes(b"MTLB" + struct.pack("<HHHBBHBB", 0x8001, 2, 7, 0, 0x81, major, minor, patch) + bytes(32))
    return path


def site(folder, name, initialize, version="", requires=None):
    """A folder that, on ``PYTHONPATH``, is an installed provider whose plugin runs ``initialize``."""
    provider = PROVIDERS[name]
    module = folder / "jax_plugins" / f"fake_{provider.platform.lower()}"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(textwrap.dedent(initialize))
    version = version or VERSIONS[name]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    needs = REQUIRES.get(name, ()) if requires is None else requires
    metadata = [
        f"Name: {name}",
        f"Version: {version}",
        "Requires-Python: >=3.11",
        *(f"Requires-Dist: {r}" for r in needs),
    ]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(metadata) + "\n")
    (info / "entry_points.txt").write_text(f"[jax_plugins]\n{provider.platform.lower()} = jax_plugins.{module.name}\n")
    (info / "RECORD").write_text(f"jax_plugins/{module.name}/__init__.py,,\n")
    return folder


def platform_plugin(platform, priority=500, broken=""):
    """The text of a plugin that registers a CPU client under ``platform``, or a factory that raises ``broken``."""
    factory = f"raise RuntimeError({broken!r})" if broken else "return xla_client.make_cpu_client()"
    return f"""
    def initialize():
        from jax.extend import backend
        from jaxlib import xla_client

        def factory():
            {factory}

        backend.register_backend_factory({platform!r}, factory, priority={priority})
    """


def python(code, *folders, timeout=300, check=True, **environment):
    """Run ``code`` after `pretence` in a fresh Python that sees ``folders`` as installed; gives what it printed."""
    paths = [*map(str, folders), str(HERE)] + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    variables = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    variables |= {"PYTHONPATH": os.pathsep.join(paths), **environment}
    done = subprocess.run(
        [sys.executable, "-c", "from pretence import *\n" + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=variables,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip() if check else done


def as_json(text):
    return json.loads(text.splitlines()[-1])
