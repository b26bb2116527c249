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
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from m2ml.equivalence.bisect import first_disagreement
from m2ml.equivalence.findings import Counts, Finding
from m2ml.equivalence.measure import judge_twice, measured_bounds, run_program
from m2ml.equivalence.primitives import load
from m2ml.equivalence.programs import OP, RandomProgram, drawable_ops, palette, programs
from m2ml.equivalence.report import Divergence, Report
from m2ml.equivalence.reproduce import source_of, with_ops
from m2ml.equivalence.smaller import smaller
from m2ml.errors import Disagreement, FallbackWarning
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


_OP = re.compile(rf"{re.escape(OP)}\w+")
_DTYPE = re.compile(r"(\w+)\[")


class _Stop(BaseException):
    """Ends a batch through hypothesis, which lets it pass."""


class Hunt:
    """Batches of random programs on ``backend``, the same ones for the same ``seed`` and ``counts``.

    With ``ops`` two ops join the primitives of a batch: what their kernels do wrong may end the process. ``known`` are
    keys of findings that are not reported again, ``avoided`` primitives that are not drawn.
    ``before(source)`` is told each program that is about to run, ``after(counts)`` what it added, ``found(finding)``
    each new disagreement at once, as it was met, and again once it is cut down.
    """

    def __init__(
        self,
        backend: str,
        *,
        seed: int = 0,
        ops: bool = False,
        known: Iterable[str] = (),
        avoided: Iterable[str] = (),
        before: Callable[[str], None] | None = None,
        after: Callable[[Counts], None] | None = None,
        found: Callable[[Finding], None] | None = None,
    ) -> None:
        self.backend, self.seed, self.known = backend, seed, set(known)
        self.avoided, self.ops = frozenset(avoided), drawable_ops() if ops else []
        self.before, self.after, self.found = before, after, found
        self.counts = Counts()
        self.rare = _rare(backend)

    def batch(self, number: int, *, size: int = BATCH) -> list[Finding]:
        """Run batch ``number``: its new disagreements cut down, the first of them by hypothesis too."""
        rng = random.Random(f"{self.seed} {number}")
        names = [*palette(rng, self.counts.primitives, self.rare), *rng.sample(self.ops, min(len(self.ops), 2))]
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
            if not shrinker.met:
                raise
        self.known.update(shrinker.met)
        return [self.tell(self.cut_down(met)) for met in shrinker.met.values()]

    def tell(self, finding: Finding) -> Finding:
        if self.found:
            self.found(finding)
        return finding

    def cut_down(self, met: Met) -> Finding:
        """The smallest part of a program that shows its disagreement still; the program itself at worst."""
        try:
            program, host = smaller(met.verdict.program, met.verdict.host, self._shows, met.divergence)
            again = examined(program, host, self.backend)
            if again.report.ok:
                return self.uncut(met, "run again, it agrees")
            return self._written(met, again)
        except Exception as error:  # what was found is worth more than what is wrong with cutting it down
            return self.uncut(met, f"it was not cut down: {type(error).__name__}: {error}")

    def uncut(self, met: Met, why: str = "") -> Finding:
        """The disagreement as it was met; where even that cannot be written, what is known of it."""
        met = replace(met, notes=(*met.notes, why)) if why else met
        try:
            return self._written(met, met.verdict)
        except Exception as error:
            said = "\n".join([*met.said, f"it was not written: {type(error).__name__}: {error}", str(met.program)])
            return Finding(met.key, "disagreement", said, "".join(f"# {line}\n" for line in said.splitlines()))

    def _shows(self, program: Program, host: Sequence[Array]) -> bool:
        return not examined(program, host, self.backend).report.ok

    def _written(self, met: Met, verdict: Verdict) -> Finding:
        kind = "error" if verdict.report.backends[0].error else "disagreement"
        text = "\n".join([str(verdict.report), *met.said])
        source = source_of(with_ops(verdict.program), verdict.host, self.backend, f"{met.key}\n\n{text}")
        return Finding(met.key, kind, text, source)

    def examine(self, random_program: RandomProgram) -> Verdict:
        """Run one program on the backend and hold it against its bound."""
        program = Staged(random_program).trace(random_program.arrays, {})
        if self.before:
            self.before(source_of(with_ops(program), random_program.arrays, self.backend, str(random_program)))
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
        new.primitives.update(set(_OP.findall(str(random_program))))  # their definitions are other primitives
        new.primitives.update(dict.fromkeys(verdict.fallbacks, BATCH))  # what leaves the engine is drawn seldom
        self.counts.add(new)
        if self.after:
            self.after(new)


@dataclass(frozen=True)
class Met:
    """The smallest program that showed one disagreement so far, and what is known of it."""

    key: str
    program: RandomProgram
    verdict: Verdict
    divergence: Divergence | None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(self.verdict.program.primitives.values()) + sum(x.size for x in self.verdict.host)

    @property
    def said(self) -> list[str]:
        return [*([str(self.divergence)] if self.divergence else []), *self.notes]


class _Shrinker:
    """What hypothesis runs in one batch: it fails for programs that show the first new disagreement again."""

    def __init__(self, hunt: Hunt) -> None:
        self.hunt = hunt
        self.met: dict[str, Met] = {}
        self.tried, self.began = 0, 0.0

    def __call__(self, random_program: RandomProgram) -> None:
        self.tried += bool(self.met)
        if self.met and (self.tried > SHRINKS or time.monotonic() - self.began > SHRINKING):
            raise _Stop
        verdict = self.hunt.examine(random_program)
        if verdict.report.ok:
            return
        met = located(random_program, verdict, self.hunt.backend)
        if met.key in self.hunt.known:
            return
        self.began = self.began or time.monotonic()
        if met.key not in self.met:
            self.hunt.tell(self.hunt.uncut(met))
        if met.key not in self.met or met.size < self.met[met.key].size:
            self.met[met.key] = met
        if met.key == next(iter(self.met)):
            raise Disagreement(met.key)


def examined(program: Program, host: Sequence[Array], backend: str) -> Verdict:
    """``program`` on ``backend`` against the reference; a disagreement is judged again by the spread of more runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        try:
            results: Any = run_program(backend, program, host)
        except Exception as error:  # whatever an engine raises is what it gave
            results = f"{type(error).__name__}: {' '.join(str(error).split())}"
    fallbacks = tuple(w.message.primitive for w in caught if isinstance(w.message, FallbackWarning))
    report, bounds = judge_twice(program, {backend: results}, lambda runs: measured_bounds(program, host, runs=runs))
    judged = sum(int(np.count_nonzero(np.isfinite(b.expected) & ~b.unstable)) for b in bounds)
    return Verdict(program, tuple(host), report, judged, fallbacks)


def located(random_program: RandomProgram, verdict: Verdict, backend: str) -> Met:
    """A disagreement with what is the same for the same fault: the bisected primitive and the dtypes it takes."""
    notes: tuple[str, ...] = ()
    try:
        found = first_disagreement(verdict.program, verdict.host, backend)
    except Exception as error:  # what was found is worth more than what is wrong with locating it
        found, notes = None, (f"its equation was not found: {type(error).__name__}: {error}",)
    if found is None:
        said = verdict.report.backends[0].error.partition(":")[0] or "only together"
        key = f"{backend} {said}: {' '.join(sorted(verdict.program.primitives))}"
        return Met(key, random_program, verdict, None, notes)
    dtypes = " ".join(sorted(set(_DTYPE.findall(found.equation))))
    key = f"{backend} {found.primitive} {dtypes} {'' if found.how == 'alone' else found.how}".strip()
    return Met(key, random_program, verdict, found)


def _rare(backend: str) -> frozenset[str]:
    """Primitives that the backend does not run itself: its gaps, and those that a table of rules lacks."""
    engine: Any = registry.get(backend)
    lacking = set(load()) - set(engine.rules) if hasattr(engine, "rules") else set()
    return frozenset(lacking | {gap.primitive for gap in engine.gaps if gap.dtype == gap.case == "*"})


def forget_compiled() -> None:
    """Let go of what JAX keeps of every program it traced."""
    jax.clear_caches()
