"""Everything the host can say of one kernel, in one report: lint, orders, fresh memory, sanitizers, variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from m2ml_kernels.errors import CompileError, KernelError
from m2ml_kernels.metal_host.build import PLAIN, Constant, Source, Variant, compile_kernel
from m2ml_kernels.metal_host.errors import SanitizerMissing
from m2ml_kernels.metal_host.execution import IN_ORDER, Output, Result, Schedule, launch
from m2ml_kernels.metal_host.findings import Finding
from m2ml_kernels.metal_host.lint import LinterMissing, lint

# What a correct kernel's result may depend on within its error bound: each is one launch.
VARIANTS: dict[str, tuple[Variant, Schedule]] = {
    "functions off by what Metal allows": (Variant(noise=1), IN_ORDER),
    "functions off the other way": (Variant(noise=2), IN_ORDER),
    "products contracted into sums": (Variant(contract=True), IN_ORDER),
    "denormals flushed": (PLAIN, Schedule(flush_denormals=True)),
    "reductions in another order": (PLAIN, Schedule("random", seed=1, shuffle_reductions=True)),
}


@dataclass(frozen=True)
class Case:
    """A kernel with arguments. ``expected`` and ``bound`` give outputs by index and how far off each may be.

    ``read_back`` are the outputs among the arrays that are given; ``safe_math`` is how its functions are compiled.
    """

    source: Source
    kernel: str
    buffers: Mapping[int, np.ndarray | Output]
    grid: Sequence[int]
    threadgroup: Sequence[int]
    template: str = ""
    constants: Mapping[int, Constant] | None = None
    memory: Mapping[int, int] | None = None
    expected: Mapping[int, np.ndarray] | None = None
    bound: Mapping[int, np.ndarray] | None = None
    read_back: Sequence[int] = ()
    safe_math: bool = False
    seconds: float = 60.0

    def run(self, variant: Variant = PLAIN, schedule: Schedule = IN_ORDER) -> Result:
        variant = replace(variant, safe_math=self.safe_math)
        kernel = compile_kernel(
            self.source, self.kernel, template=self.template, constants=self.constants, variant=variant
        )
        return launch(
            kernel,
            self.buffers,
            grid=self.grid,
            threadgroup=self.threadgroup,
            memory=self.memory,
            read_back=self.read_back,
            schedule=schedule,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class Step:
    """One part of a check: what was tried, what it found, and a remark; ``ran`` is False where it could not be."""

    name: str
    findings: tuple[Finding, ...] = ()
    remark: str = ""
    ran: bool = True

    @property
    def passed(self) -> bool:
        return all(finding.is_note for finding in self.findings)


@dataclass(frozen=True)
class Report:
    """What a check found, step by step; ``texts`` are the sources by the name that findings give their files."""

    title: str
    texts: Mapping[str, str]
    steps: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        return all(step.passed for step in self.steps)

    @property
    def text(self) -> str:
        """The report to read: a line for each step, and each finding with its line of the source."""
        lines = [self.title]
        for step in self.steps:
            state = "not run" if not step.ran else "ok" if step.passed else "WRONG"
            lines.append(f"  {step.name:<36} {state:<8}{step.remark}".rstrip())
            lines += [line for finding in step.findings for line in self._told(finding)]
        lines.append("failed" if not self.passed else "passed" if any(step.ran for step in self.steps) else "not run")
        return "\n".join(lines)

    def _told(self, finding: Finding) -> Iterator[str]:
        yield f"    {'note: ' if finding.is_note else ''}{finding}"
        if text := self._excerpt(finding):
            yield f"      {finding.line:>4} | {text}"

    def _excerpt(self, finding: Finding) -> str:
        if finding.file in self.texts:
            lines = self.texts[finding.file].splitlines()
        elif Path(finding.file).is_file():
            lines = Path(finding.file).read_text().splitlines()
        else:
            return ""
        return lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""


def check(case: Case) -> Report:
    """Try ``case`` in every way the host knows; what goes wrong is in the report, not raised."""
    steps = [_lint(case.source), _step("threads in order", case, lambda: _compare(case, case.run()))]
    if steps[-1].passed:
        left = case.run().buffers
        steps += [_step(name, case, tried) for name, tried in _trials(case, left)]
    title = f"{case.kernel} in {case.source.file}"
    return Report(title, {case.source.file: case.source.text}, tuple(steps))


Outcome = tuple[tuple[Finding, ...], str]


def _trials(case: Case, left: Mapping[int, np.ndarray]) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Every launch after the first one, whose outputs are ``left``."""
    yield "threads in reverse order", partial(_against, case, left, PLAIN, Schedule("reverse"))
    yield "threads in random order", partial(_against, case, left, PLAIN, Schedule("random", seed=1))
    yield "fresh memory holds other bytes", lambda: (fresh_memory(case, left), "")
    yield "address sanitizer", partial(_watched, case, Variant(sanitizer="address"))
    yield "thread sanitizer", partial(_watched, case, Variant(sanitizer="thread"))
    for name, (variant, schedule) in VARIANTS.items():
        yield name, partial(_against, case, left, variant, schedule)
    yield "costs", partial(_costs, case)


def _step(name: str, case: Case, run: Callable[[], Outcome]) -> Step:
    try:
        return Step(name, *run())
    except SanitizerMissing as error:
        return Step(name, remark=str(error), ran=False)
    except KernelError as error:
        kind = "does not compile" if isinstance(error, CompileError) else "stopped"
        return Step(name, (Finding(kind, case.source.file, 0, str(error)),))


def _lint(source: Source) -> Step:
    try:
        return Step("address spaces", tuple(lint(source)))
    except LinterMissing as error:
        return Step("address spaces", remark=str(error), ran=False)


def _costs(case: Case) -> Outcome:
    counts = case.run(Variant(counted=True)).counts
    return (), counts.summary if counts else ""


def _watched(case: Case, variant: Variant) -> Outcome:
    return case.run(variant).findings, ""


def _against(case: Case, left: Mapping[int, np.ndarray], variant: Variant, schedule: Schedule) -> Outcome:
    """A launch compared with the bound, and how far its outputs lie from those of the first launch."""
    result = case.run(variant, schedule)
    findings, remark = _compare(case, result)
    spread = max((_spread(result.buffers[index], first) for index, first in left.items()), default=0.0)
    return findings, remark or ("same bits" if spread == 0 else f"moves outputs by up to {spread:.1e} of the largest")


def _compare(case: Case, result: Result) -> Outcome:
    findings, worst = list(result.findings), 0.0
    for index, expected in (case.expected or {}).items():
        bound = np.broadcast_to((case.bound or {}).get(index, np.zeros(())), expected.shape)
        difference = np.abs(result.buffers[index].astype(np.float64) - expected.astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(difference == 0, 0.0, difference / bound)
        place = np.unravel_index(int(np.nanargmax(np.where(np.isnan(share), np.inf, share))), share.shape)
        worst = max(worst, float(share[place]))
        if not share[place] <= 1:
            where = tuple(map(int, place))
            got = f"{result.buffers[index][place]}, not {expected[place]} within {bound[place]:.1e}"
            what = f"buffer {index} at {where} is {got}"
            findings.append(Finding("wrong result", case.source.file, 0, what))
    return tuple(findings), f"within {worst:.0%} of the bound" if case.expected else ""


def fresh_memory(case: Case, left: Mapping[int, np.ndarray]) -> tuple[Finding, ...]:
    """Outputs that depend on what uninitialized memory held, or that were never written; ``left`` has NaN there."""
    other = case.run(schedule=replace(IN_ORDER, fill=0x3C)).buffers
    findings = []
    for index, first in left.items():
        differs = np.flatnonzero(first.view(np.uint8) != other[index].view(np.uint8))
        if differs.size:
            where = tuple(map(int, np.unravel_index(int(differs[0]) // first.itemsize, first.shape)))
            what = f"buffer {index} at {where} is never written, or depends on memory that is not"
            findings.append(Finding("uninitialized memory", case.source.file, 0, what))
    return tuple(findings)


def _spread(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference as a share of the largest number; infinite where only one of the two is NaN."""
    wide, first = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isnan(wide), np.isnan(first)):
        return float("inf")
    scale = float(np.nanmax(np.abs(first), initial=0.0)) or 1.0
    return float(np.nanmax(np.abs(wide - first), initial=0.0)) / scale
