"""What the kit says in the end: a support table for people, the same as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from m2ml.backend import Backend
from m2ml.equivalence.conformance.suite import Result

OUTCOMES = ("passed", "failed", "gap", "not run")


def support_table(backend: Backend, results: Sequence[Result], *, complete: bool = True) -> str:
    """Counts per part, what is supported, every declared gap with its reason, and every failure.

    A table of some of the checks only (``complete`` is false) says so.
    """
    parts = list(dict.fromkeys(result.part for result in results))
    width = max(map(len, (*parts, "all")), default=0)
    some = "" if complete else " (some of the checks only)"
    devices = ", ".join(f"{device.name} ({device.kind})" for device in backend.devices())
    lines = [
        f"{backend.name} on {devices}, jax {jax.__version__}{some}",
        "",
        " ".join([" " * width, *(f"{name:>8}" for name in OUTCOMES)]),
    ]
    for part in (*parts, "all"):
        counts = _counts(r for r in results if part in (r.part, "all"))
        lines.append(" ".join([f"{part:{width}}", *(f"{counts[name] or '-':>8}" for name in OUTCOMES)]))
    for part in ("dtypes", "primitives"):
        supported = [r.name for r in results if r.part == part and r.outcome == "passed" and " " not in r.name]
        if supported:
            lines += ["", f"{part}: {', '.join(supported)}"]
    for outcome, title in (("gap", "declared gaps"), ("not run", "not run")):
        lines += _by_reason(title, [r for r in results if r.outcome == outcome])
    failures = [f"  {r.part}/{r.name}: {_line(r.message)}" for r in results if r.outcome == "failed"]
    return "\n".join([*lines, *(["", "failed:", *failures] if failures else [])])


def _counts(results: Iterable[Result]) -> Mapping[str, int]:
    return Counter(result.outcome for result in results)


def _by_reason(title: str, results: Sequence[Result]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for result in results:
        reasons.setdefault(_line(result.message), []).append(f"{result.part}/{result.name}")
    lines = [f"  {reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return ["", f"{title}:", *lines] if lines else []


def _line(message: str) -> str:
    return " ".join(message.split())


def as_json(backend: Backend, results: Sequence[Result]) -> dict[str, Any]:
    """The results as plain JSON values."""
    return {
        "backend": backend.name,
        "devices": [f"{d.name} ({d.kind})" for d in backend.devices()],
        "jax": jax.__version__,
        "counts": {outcome: _counts(results)[outcome] for outcome in OUTCOMES},
        "results": [
            {"part": r.part, "name": r.name, "outcome": r.outcome, "message": _line(r.message)} for r in results
        ],
    }
