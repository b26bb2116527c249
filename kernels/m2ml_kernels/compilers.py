"""Which C++ compiler this machine has."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2ml_kernels.errors import CompilerMissing

ENVIRONMENT = "M2ML_CXX"
NAMES = ("clang++", "g++", "c++")
NATIVE = "-march=native"
#: What kernels are written in that compilers lacked on x86-64 before GCC 12 and Clang 15.
_NEEDED = "_Float16 half;\n"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how it is called, and what it says of its version."""

    command: tuple[str, ...]
    version: str
    kind: Literal["clang", "gcc", "zig"]

    def __str__(self) -> str:
        return self.version.partition("\n")[0]

    def translate(self, flags: Sequence[str]) -> list[str]:
        """``flags`` as this compiler spells them: only ``-march=native`` differs."""
        cpu = self.kind == "zig" or (self.kind == "clang" and platform.machine() == "arm64")
        return ["-mcpu=native" if flag == NATIVE and cpu else flag for flag in flags]


def find_compiler() -> Compiler:
    """The compiler of ``$M2ML_CXX``, else the first of clang++, g++ and c++, else the one in the package ziglang.

    Of those that are not named, one that is too old is passed over. Raises `CompilerMissing` when there is none, and
    when the one that ``$M2ML_CXX`` names does not answer.
    """
    return _find(os.environ.get(ENVIRONMENT, ""), os.environ.get("PATH", ""))


@functools.lru_cache
def _find(chosen: str, path: str) -> Compiler:
    if chosen:
        found = _ask(tuple(shlex.split(chosen)))
        if found is None:
            raise CompilerMissing(
                f"${ENVIRONMENT} is {chosen!r}, which does not answer to --version: correct or unset it"
            )
        return found
    commands: list[tuple[str, ...]] = [(location,) for name in NAMES if (location := shutil.which(name, path=path))]
    if importlib.util.find_spec("ziglang"):
        commands.append((sys.executable, "-m", "ziglang", "c++"))
    old = []
    for command in commands:
        found = _ask(command)
        if found and _is_new(found):
            return found
        old += [str(found)] if found else []
    too_old = f" ({', '.join(dict.fromkeys(old))}: too old, GCC 12 or Clang 15 is needed)" if old else ""
    raise CompilerMissing(
        f"no C++ compiler was found: neither ${ENVIRONMENT}, nor {', '.join(NAMES)} on PATH{too_old}, nor the package "
        "ziglang; install one (pip install ziglang)"
    )


def _is_new(compiler: Compiler) -> bool:
    """Whether it has what kernels are written in; the one in a package always does."""
    asked = [*compiler.command, "-x", "c++", "-fsyntax-only", "-"]
    return compiler.kind == "zig" or _answer(asked, given=_NEEDED) is not None


def _ask(command: tuple[str, ...]) -> Compiler | None:
    zig = any(Path(part).name in ("zig", "ziglang") for part in command)
    with tempfile.TemporaryDirectory() as folder:  # zig leaves an empty a.o where it is asked
        said = _answer([*command, "--version"], place=folder if zig else None)
    if said is None:
        return None
    kind: Literal["clang", "gcc", "zig"] = "zig" if zig else "clang" if "clang" in said else "gcc"
    return Compiler(command, said.strip(), kind)


def _answer(asked: Sequence[str], *, given: str = "", place: str | None = None) -> str | None:
    """What a command prints, None where it fails."""
    try:
        return subprocess.run(
            asked, input=given, capture_output=True, text=True, timeout=60, check=True, cwd=place
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def host_cpu() -> str:
    """What code made with ``-march=native`` depends on: the machine's architecture, model and features."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        first = told.read_text().partition("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        return "\n".join([platform.machine(), *(line for line in first if line.startswith(wanted))])
    if sys.platform == "darwin":
        brand = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return f"{platform.machine()}\n{brand.stdout}"
    return f"{platform.machine()}\n{platform.processor()}"
