"""Where in the Metal source an instruction of a compiled kernel comes from."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
OURS = (HERE / "shim", HERE / "runtime")  # what is not the kernel's own
NOWHERE = ("", 0)


def is_ours(file: str) -> bool:
    return any(file.startswith(str(folder)) for folder in OURS)


@functools.lru_cache(maxsize=4096)
def place_of(path: str, offset: int) -> tuple[str, int]:
    """File and line of the instruction at ``offset`` in the object ``path``; `NOWHERE` if no tool here can say."""
    command = ["addr2line", "--inlines", "-e", path, hex(offset)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return NOWHERE
    for line in said.splitlines():  # from the innermost inlined function outwards
        file, _, number = line.split(" ")[0].partition(":")
        if number.isdigit() and not is_ours(file):
            return file, int(number)
    return NOWHERE
