"""Run random programs on one backend, one batch after the other; shrink what disagrees and name its equation.

Everything here happens in one process; `m2ml.equivalence.fuzz` runs it in another one that may die. Needs
hypothesis (the extra ``m2ml[kit]``).
"""

from __future__ import annotations

import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from m2ml.equivalence.bisect import first_disagreement
from m2ml.equivalence.findings import Counts, Finding
from m2ml.equivalence.measure import SECOND_LOOK, judge_all, measured_bounds, run_program
from m2ml.equivalence.programs import RandomProgram, drawable, palette, programs
from m2ml.equivalence.report import Divergence, Report
from m2ml.equivalence.reproduce import source_of
from m2ml.equivalence.smaller import smaller
from m2ml.errors import Disagreement, FallbackWarning, M2mlError
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

Array = np.ndarray[Any, Any]

#: Programs of one batch: they share their primitives, and hypothesis forgets what it knows between batches.
BATCH = 50

#: Most programs run to shrink one disagreement, and the longest time in seconds that this may take.
SHRINKS, SHRINKING = 150, 60.0


@dataclass(frozen=True)
class Verdict:
    """One program on one backend: ``report`` is None where the program has no results."""

    program: Program
    host: tuple[Array, ...]
    report: Report
    judged: int
    fallbacks: tuple[str, ...]


_DTYPE = re.compile(r"(\w+)\[")


class _Stop(BaseException):
    """Ends a batch through hypothesis, which lets it pass."""


class Hunt:
    """Batches of random programs on ``backend``, the same ones for the same ``seed`` and ``counts``.

    ``known`` are keys of findings that are not reported again, ``avoided`` primitives that are not drawn.
    ``before(source)`` is told each program that is about to run, ``after(counts)`` what it added.
    """

    def __init__(
        self,
        backend: str,
        *,
        seed: int = 0,
        known: Iterable[str] = (),
        avoided: Iterable[str] = (),
        before: Callable[[str], None] | None = None,
        after: Callable[[Counts], None] | None = None,
    ) -> None:
        self.backend, self.seed, self.known = backend, seed, set(known)
        self.avoided = frozenset(avoided)
        self.before, self.after = before, after
        self.counts = Counts()
        self.rare = _rare(backend)

    def batch(self, number: int, *, size: int = BATCH) -> Finding | None:
        """Run batch ``number``: its first new disagreement, shrunk, or None."""
        names = palette(random.Random(f"{self.seed} {number}"), self.counts.primitives, self.rare)
        names = [name for name in names if name not in self.avoided]
        shrinker = _Shrinker(self)
        phases = (Phase.generate, Phase.shrink)

        @seed(hash((self.seed, number)))
        @settings(
            max_examples=size, database=None, phases=phases, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(programs(names))
        def run(program: RandomProgram) -> None:
            shrinker(program)

        try:
            run()
        except (_Stop, Disagreement):
            pass
        except Exception:  # hypothesis has opinions on functions whose result depends on the time
            if shrinker.best is None:
                raise
        return shrinker.finding()

    def examine(self, random_program: RandomProgram) -> Verdict:
        """Run one program on the backend and hold it against its bound."""
        program = Staged(random_program).trace(random_program.arrays, {})
        if self.before:
            self.before(source_of(program.code, random_program.arrays, self.backend, str(random_program)))
        verdict = examined(program, random_program.arrays, self.backend)
        self._count(random_program, verdict)
        return verdict

    def _count(self, random_program: RandomProgram, verdict: Verdict) -> None:
        outputs = verdict.report.backends[0].outputs
        new = Counts(
            programs=1,
            equations=sum(verdict.program.primitives.values()),
            elements=sum(int(np.prod(out.shape)) for out in outputs),
            judged=verdict.judged,
            fallbacks=len(verdict.fallbacks),
            disagreements=not verdict.report.ok,
            primitives=Counter(dict.fromkeys(verdict.program.primitives, 1)),
            blocks=random_program.blocks,
        )
        new.primitives.update(dict.fromkeys(verdict.fallbacks, BATCH))  # what leaves the engine is drawn seldom
        self.counts.add(new)
        if self.after:
            self.after(new)


class _Shrinker:
    """What hypothesis runs in one batch: it fails for programs that show the first new disagreement again."""

    def __init__(self, hunt: Hunt) -> None:
        self.hunt = hunt
        self.key = ""
        self.tried, self.began = 0, 0.0
        self.best: tuple[int, Verdict, Divergence | None] | None = None

    def __call__(self, random_program: RandomProgram) -> None:
        self.tried += bool(self.best)
        if self.best and (self.tried > SHRINKS or time.monotonic() - self.began > SHRINKING):
            raise _Stop
        verdict = self.hunt.examine(random_program)
        if verdict.report.ok:
            return
        key, divergence = key_of(verdict, self.hunt.backend)
        if key in self.hunt.known or (self.key and key != self.key):
            return
        self.key, self.began = key, self.began or time.monotonic()
        size = sum(verdict.program.primitives.values()) + sum(x.size for x in verdict.host)
        if self.best is None or size < self.best[0]:
            self.best = (size, verdict, divergence)
        raise Disagreement(key)

    def finding(self) -> Finding | None:
        if self.best is None:
            return None
        _, verdict, divergence = self.best
        self.hunt.known.add(self.key)
        backend = self.hunt.backend

        def shows(program: Program, host: Sequence[Array]) -> bool:
            return not examined(program, host, backend).report.ok

        program, host, report = verdict.program, verdict.host, verdict.report
        said = [str(divergence)] if divergence else []
        try:
            program, host = smaller(program, host, shows, divergence)
            report = examined(program, host, backend).report
        except Exception as error:  # what was found is worth more than what is wrong with cutting it down
            said.append(f"it was not cut down: {type(error).__name__}: {error}")
        kind = "error" if report.backends[0].error else "disagreement"
        text = "\n".join([str(report), *said])
        return Finding(self.key, kind, text, source_of(program.code, host, backend, f"{self.key}\n\n{text}"))


def examined(program: Program, host: Sequence[Array], backend: str) -> Verdict:
    """``program`` on ``backend`` against the reference; a disagreement is judged again by the spread of more runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        try:
            results: Any = run_program(backend, program, host)
        except (M2mlError, RuntimeError, ValueError, TypeError) as error:
            results = f"{type(error).__name__}: {' '.join(str(error).split())}"
    fallbacks = tuple(w.message.primitive for w in caught if isinstance(w.message, FallbackWarning))
    bounds = measured_bounds(program, host)
    report = judge_all(program, {backend: results}, bounds)
    if not report.ok:
        bounds = measured_bounds(program, host, runs=SECOND_LOOK)
        report = judge_all(program, {backend: results}, bounds)
    judged = sum(int(np.count_nonzero(np.isfinite(b.expected) & ~b.unstable)) for b in bounds)
    return Verdict(program, tuple(host), report, judged, fallbacks)


def key_of(verdict: Verdict, backend: str) -> tuple[str, Divergence | None]:
    """What is the same for the same fault: the bisected primitive with the dtypes it takes; and the bisection."""
    found = first_disagreement(verdict.program, verdict.host, backend)
    if found is None:
        said = verdict.report.backends[0].error.partition(":")[0] or "only together"
        return f"{backend} {said}: {' '.join(sorted(verdict.program.primitives))}", None
    dtypes = sorted(set(_DTYPE.findall(found.equation)))
    return f"{backend} {found.primitive} {' '.join(dtypes)} {'' if found.how == 'alone' else found.how}".strip(), found


def _rare(backend: str) -> frozenset[str]:
    """Primitives that the backend does not run itself: its gaps, and those that a table of rules lacks."""
    engine: Any = registry.get(backend)
    lacking = set(drawable()) - set(engine.rules) if hasattr(engine, "rules") else set()
    return frozenset(lacking | {gap.primitive for gap in engine.gaps if gap.dtype == gap.case == "*"})


def forget_compiled() -> None:
    """Let go of what JAX keeps of every program it traced."""
    jax.clear_caches()
