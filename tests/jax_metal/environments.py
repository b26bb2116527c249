"""Environments with another Python and another JAX, and the providers' wheels for macOS, fetched by name.

They are kept in the user's cache folder: making one takes minutes.
"""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import platformdirs
import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
KEPT = platformdirs.user_cache_path("m2ml") / "test-environments"

#: Wheel, the macOS that it is fetched for, and the Python.
WHEELS = {
    "jax-mps": ("jax-mps==0.11.1", "macosx_14_0_arm64", "3.12"),
    "metaljax": ("metaljax==0.11.9", "macosx_14_0_arm64", "3.12"),
    "jax-graft": ("jax-graft==0.0.5", "macosx_26_0_arm64", "3.12"),
    "metal-pjrt-core": ("metal-pjrt-core==0.0.5", "macosx_26_0_arm64", "3.12"),
    "jax-metal": ("jax-metal==0.1.1", "macosx_14_0_arm64", "3.11"),
}

#: JAX to the Python and the requirements of its environment.
JAXES = {
    "0.11.2": ("3.12", ["jax==0.11.2"]),
    "0.12": ("3.12", ["jax==0.12.*"]),
    "0.5.0": ("3.11", ["jax==0.5.0", "jaxlib==0.5.0", "flax==0.10.*"]),
}


def find_python(version):
    """A Python of this version, the running one included; skips the test where there is none."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for candidate in (sys.executable, *map(str, reversed(pyenv)), f"python{version}"):
        try:
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        if said.startswith(f"Python {version}."):
            return candidate
    pytest.skip(f"there is no Python {version} on this machine")


def _run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=1200, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr[-2000:]}"
    return done.stdout


def environment(jax):
    """The interpreter of an environment with this JAX and m2ml itself."""
    version, needs = JAXES[jax]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matters = [project[part] for part in ("dependencies", "optional-dependencies", "entry-points")]
    key = hashlib.sha256(json.dumps([str(ROOT), matters, version, needs]).encode()).hexdigest()[:16]
    folder = KEPT / f"jax-{jax}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        _run(find_python(version), "-m", "venv", "--clear", folder)
        _run(python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[demo,kit]", *needs)
        (folder / "done").touch()
    return python


def wheel(name):
    """The folder of a provider's unpacked wheel. It is looked at and its Python files are run, nothing else."""
    requirement, platform, python = WHEELS[name]
    folder = KEPT / requirement
    if not (folder / "done").exists():
        options = ["--no-deps", "--only-binary=:all:", f"--platform={platform}", f"--python-version={python}"]
        _run(sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", folder, requirement)
        (path,) = folder.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        path.unlink()
        (folder / "done").touch()
    return folder


def run(jax, program, *arguments, folders=()):
    """What a program of this folder prints as JSON, in the environment with this JAX."""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    variables["PYTHONPATH"] = os.pathsep.join([*map(str, folders), str(HERE)])
    return json.loads(
        _run(environment(jax), "-W", "ignore", HERE / program, *arguments, env=variables).splitlines()[-1]
    )


def resolve(extra):
    """The requirements of m2ml with an extra, resolved for a Mac: pip's report, nothing is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs, waiting = [*project["dependencies"]], [extra]
    while waiting:
        for need in project["optional-dependencies"][waiting.pop()]:
            if need.startswith("m2ml["):
                waiting.append(need.removeprefix("m2ml[").removesuffix("]"))
            else:
                needs.append(need)
    version = "3.11" if extra == "jax-metal" else "3.12"
    # A wheel for an older macOS runs on a newer one; pip takes the tags that it is given, and no others.
    platforms = [f"--platform=macosx_{macos}_0_arm64" for macos in (*range(11, 16), 26)]
    platforms += ["--platform=macosx_10_13_universal2", "--platform=macosx_11_0_universal2", "--platform=any"]
    options = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--target=nowhere", "--report=-"]
    # pip holds Requires-Python of what it resolves against the Python that it runs on.
    said = _run(
        find_python(version),
        "-m",
        "pip",
        "install",
        "--quiet",
        *options,
        *platforms,
        f"--python-version={version}",
        *needs,
    )
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in json.loads(said)["install"]}
