"""Launches under AddressSanitizer and ThreadSanitizer: how they are started, and what their reports say."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from m2ml_kernels.metal_host.findings import Finding
from m2ml_kernels.metal_host.places import NOWHERE, is_ours, place_of

_FRAME = re.compile(
    r"^\s*#\d+ (?:0x[0-9a-f]+ in )?(?P<what>.+?) (?P<file>[^\s(][^()\n]*?):(?P<line>\d+)(?::\d+)?(?: \(|$)", re.M
)
_OFFSET = re.compile(r"^\s*#\d+ .*\((?P<object>[^()\s]+)\+0x(?P<at>[0-9a-f]+)\)", re.M)
_ADDRESS = re.compile(r"ERROR: AddressSanitizer: (\S+)")
_ACCESS = re.compile(r"^(READ|WRITE) of size (\d+)", re.M)
_ACCOUNT = re.compile(r"^Metal: ((?:\d+ ){6})(.*)$", re.M)
_RACE = re.compile(r"WARNING: ThreadSanitizer: (.*?) \(pid=.*?\n={18}", re.S)
_SIDE = re.compile(
    r"^  ((?:Previous )?(?:atomic )?(?:[Rr]ead|[Ww]rite)) of size (\d+) at \S+ by (.*?):\n((?:    [#\[].*\n)+)", re.M
)
_THREAD = re.compile(r"Thread (T\d+) 'Metal thread \((\d+),(\d+),(\d+)\) of threadgroup \((\d+),(\d+),(\d+)\)'")


def environment(sanitizer: str) -> dict[str, str]:
    """The environment of a launch: both report in full, and neither looks for leaks."""
    out = dict(os.environ)
    if sanitizer == "address":
        out["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
    if sanitizer == "thread":
        out["TSAN_OPTIONS"] = "report_signal_unsafe=0:history_size=7:exitcode=0"
    return out


def prefix(sanitizer: str) -> list[str]:
    """What a command begins with: ThreadSanitizer of GCC 12 needs addresses that are not randomized."""
    return ["setarch", "-R"] if sanitizer == "thread" and _can_fix_addresses() else []


@functools.cache
def _can_fix_addresses() -> bool:
    return (
        bool(shutil.which("setarch")) and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    )


def read_report(log: str, sanitizer: str, kernel: Path) -> list[Finding]:
    """The findings in what a sanitizer printed of the compiled ``kernel``."""
    if sanitizer == "address":
        return _address_report(log, kernel)
    return _race_reports(log, kernel) if sanitizer == "thread" else []


def _address_report(log: str, kernel: Path) -> list[Finding]:
    kind = _ADDRESS.search(log)
    if not kind:
        return []
    file, line = _place(log, kernel)
    access, account = _ACCESS.search(log), _ACCOUNT.search(log)
    what = f"{access[1].lower()} of {access[2]} bytes" if access else kind[1]
    numbers = tuple(map(int, account[1].split())) if account else ()
    where = account[2] if account and account[2] else kind[1].replace("-", " ")
    return [Finding("out of bounds", file, line, f"a {what} {where}", 1, numbers[:3], numbers[3:])]


def _race_reports(log: str, kernel: Path) -> list[Finding]:
    found: dict[tuple[object, ...], Finding] = {}
    for report in _RACE.finditer(log + "=" * 18):
        sides = _SIDE.findall(report[0])
        if len(sides) < 2:
            continue
        places = [_place(frames, kernel) for *_, frames in sides[:2]]
        threads = {name: tuple(map(int, rest)) for name, *rest in _THREAD.findall(report[0])}
        first, second = (_who(side[2], threads) for side in sides[:2])
        other = f" in line {places[1][1]}" if places[1][1] else ""
        words = f"a {_verb(sides[0][0])}, and a {_verb(sides[1][0])}{other}{_told(second)}, in no order"
        found.setdefault((*places,), Finding("data race", *places[0], words, 1, first[:3], first[3:]))
    return list(found.values())


def _verb(text: str) -> str:
    return text.removeprefix("Previous ").lower()


def _who(text: str, threads: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    name = re.search(r"T\d+", text)
    return threads.get(name[0], ()) if name else ()


def _told(who: tuple[int, ...]) -> str:
    return f" by thread {who[:3]} of threadgroup {who[3:]}" if who else ""


def _place(frames: str, kernel: Path) -> tuple[str, int]:
    """The innermost place that is the kernel's own, of frames with a line, or else with an object and an offset."""
    for frame in _FRAME.finditer(frames):
        if not is_ours(frame["file"]) and "libsanitizer" not in frame["file"]:
            return frame["file"], int(frame["line"])
    for frame in _OFFSET.finditer(frames):
        if Path(frame["object"]).name == kernel.name:
            place = place_of(str(kernel), int(frame["at"], 16))
            if place != NOWHERE:
                return place
    return NOWHERE
