"""What came of JAX's own cases: outcomes, counts per group, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax

from m2ml.equivalence.jax_transforms import TRANSFORMS, Transform


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    ``fallback``: right, but some equation ran on the CPU in place of the engine, as declared. ``gap``: declared not
    to work, and does not. ``excluded``: JAX itself has no such transformation. ``said`` is the reason, or what failed.
    """

    name: str
    verdict: Literal["passed", "fallback", "gap", "failed", "excluded"]
    said: str = ""


@dataclass(frozen=True)
class Result:
    """The outcomes of one group; ``cases`` leaves out those that JAX itself does not transform (``excluded``).

    ``fallbacks``, ``gaps`` and ``excluded`` count cases by their reason.
    """

    backend: str
    transform: Transform
    group: str
    cases: int
    passed: int
    fallbacks: Mapping[str, int]
    gaps: Mapping[str, int]
    failed: tuple[Outcome, ...]
    excluded: Mapping[str, int]

    @property
    def ok(self) -> bool:
        return not self.failed


def summary(backend: str, transform: Transform, group: str, outcomes: Sequence[Outcome]) -> Result:
    """Count the outcomes of one group."""
    of = {v: [o for o in outcomes if o.verdict == v] for v in ("passed", "fallback", "gap", "failed", "excluded")}
    return Result(
        backend,
        transform,
        group,
        cases=len(outcomes) - len(of["excluded"]),
        passed=len(of["passed"]),
        fallbacks=dict(Counter(o.said for o in of["fallback"])),
        gaps=dict(Counter(o.said for o in of["gap"])),
        failed=tuple(of["failed"]),
        excluded=dict(Counter(o.said for o in of["excluded"])),
    )


def table(results: Sequence[Result]) -> str:
    """Markdown: a row per group with its counts under each transform, the totals, and what did not pass, with reasons.

    ``results`` are those of `run` for one backend, of one or several transforms.
    """
    if not results:
        return "no cases\n"
    transforms = [t for t in TRANSFORMS if any(r.transform == t for r in results)]
    of = {(r.group, r.transform): r for r in results}
    lines = [*_heading(results[0].backend), _cells("group", *transforms), _cells(*["---"] * (1 + len(transforms)))]
    for group in sorted({r.group for r in results}):
        lines.append(_cells(group, *(_counts([of[group, t]] if (group, t) in of else []) for t in transforms)))
    lines.append(_cells("**all**", *(_counts([r for r in results if r.transform == t]) for t in transforms)))
    for transform in transforms:
        lines += _reasons(transform, [r for r in results if r.transform == transform])
    return "\n".join(lines) + "\n"


def _heading(backend: str) -> list[str]:
    what = "those of JAX on the CPU" if backend == "reference" else f"those of {backend}"
    return [
        f"# JAX's own cases: {backend}",
        "",
        f"Cases of jax {jax.__version__} whose results ({what}) lie within the bounds that the reference measures:",
        "as they are, under vmap, and differentiated. A fallback is right but ran on the CPU in place of the engine.",
        "",
    ]


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _counts(results: Sequence[Result]) -> str:
    """``12 of 14 (1 fallback, 1 gap)``, or a dash where there are no cases."""
    total, passed = sum(r.cases for r in results), sum(r.passed for r in results)
    others = {
        "fallback": sum(sum(r.fallbacks.values()) for r in results),
        "gap": sum(sum(r.gaps.values()) for r in results),
        "failed": sum(len(r.failed) for r in results),
    }
    noted = ", ".join(f"{count} {what}" for what, count in others.items() if count)
    return (f"{passed} of {total}" + (f" ({noted})" if noted else "")) if total else "-"


def _reasons(transform: Transform, results: Sequence[Result]) -> list[str]:
    """The fallbacks, the gaps, the exclusions and the failures under one transform, as lists."""
    lines: list[str] = []
    kinds: list[tuple[str, Callable[[Result], Mapping[str, int]]]] = [
        ("ran on the CPU in place of the engine, as declared", lambda r: r.fallbacks),
        ("declared gaps", lambda r: r.gaps),
        ("not counted: JAX itself has no such transformation", lambda r: r.excluded),
    ]
    for title, counted in kinds:
        counts: Counter[str] = sum((Counter(counted(r)) for r in results), Counter())
        if counts:
            lines += ["", f"{transform}, {title}:", ""]
            lines += [
                f"- {count}: {reason}" for reason, count in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
            ]
    failed = [failure for r in results for failure in r.failed]
    if failed:
        lines += ["", f"{transform}, failed:", "", *(f"- `{failure.name}`: {failure.said}" for failure in failed)]
    return lines
