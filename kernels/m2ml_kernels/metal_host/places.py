"""Where in the Metal source an instruction of a compiled kernel comes from."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
OURS = (HERE / "shim", HERE / "runtime")  # what is not the kernel's own
NOWHERE = ("", 0)


def is_ours(file: str) -> bool:
    return any(file.startswith(str(folder)) for folder in OURS)


@functools.lru_cache(maxsize=4096)
def place_of(path: str, offset: int) -> tuple[str, int]:
    """File and line of the instruction at ``offset`` in the object ``path``; `NOWHERE` if no tool here can say."""
    return places_of(path, [offset])[offset]


def places_of(path: str, offsets: Sequence[int]) -> dict[int, tuple[str, int]]:
    """As `place_of`, of many instructions at once."""
    out = dict.fromkeys(offsets, NOWHERE)
    command = ["addr2line", "--addresses", "--inlines", "-e", path]
    asked = "".join(f"{offset:#x}\n" for offset in offsets)
    try:
        said = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return out
    at = -1
    for line in said.splitlines():  # an address, then from the innermost inlined function outwards
        if line.startswith("0x"):
            at = int(line, 16)
            continue
        file, _, number = line.split(" ")[0].rpartition(":")
        if number.isdigit() and not is_ours(file) and out.get(at) == NOWHERE:
            out[at] = file, int(number)
    return out
