"""Check registered kernels in every way this machine allows, and count what those in Metal cost.

A Metal kernel runs on the Metal host: it is linted, run in three orders, with fresh memory of other bytes, under the
sanitizers and with every error that Metal allows, on the samples of its op, always against the definition in float64.
Any other kernel runs where its device is, and is held to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import compat
from m2ml.equivalence.measure import host_leaves
from m2ml.equivalence.ops import (
    Implementation,
    call_of,
    check_gradient,
    check_values,
    cotangents_of,
    in_dtype,
    pullback,
    what_ran,
)
from m2ml.errors import M2mlError
from m2ml.kernel import Kernel
from m2ml.kernel import kernels as registered
from m2ml.op import Op, Sample, ops
from m2ml.plugins import registry
from m2ml.staged import Staged

if TYPE_CHECKING:
    from m2ml_kernels.metal_host import Finding, Result, Schedule, Variant
    from m2ml_kernels.metal_host.check import Case, Report, Step
    from m2ml_kernels.metal_host.counts import Counts

#: The device kind of kernels that the Metal host runs.
METAL_HOST = "metal (host)"
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


def _discover() -> None:
    import m2ml.ops  # noqa: F401 - registers them

    registry.discover()


def kernels_of(op: Op) -> list[Kernel]:
    """Every kernel of an op and of its backward op."""
    _discover()
    return [record for record in registered.all() if record.op in (op.name, op.backward.name)]


def find_op(name: str) -> Op:
    """The op of that name. Raises `M2mlError`, naming those there are."""
    _discover()
    if name not in ops:
        raise M2mlError(f"there is no op {name}; there are {', '.join(sorted(ops))}")
    return ops[name]


def metal_kernels() -> list[tuple[Op, Kernel]]:
    """Every registered kernel that the Metal host can run, with the op that it, or whose gradient it, computes."""
    _discover()
    backward = {f"{op.name}_backward": op for op in ops.values()}
    on_host = [record for record in registered.all() if METAL_HOST in record.devices]
    return [(ops.get(record.op) or backward[record.op], record) for record in on_host]


@dataclass(frozen=True)
class Subject:
    """A kernel under check: its op, and which samples it is tried on, every so many of them."""

    op: Op
    kernel: Kernel
    every: int = 1

    @property
    def on(self) -> Implementation:
        return Implementation(self.kernel.backend, True)

    @property
    def is_gradient(self) -> bool:
        return self.kernel.op != self.op.name

    def samples(self, dtype: Any) -> list[Sample]:
        """Those that the kernel runs; of a gradient's kernel, all that have one."""
        every = list(self.op.samples())
        if self.is_gradient:
            floating = [any(np.asarray(x).dtype == np.float32 for x in jax.tree.leaves(s.args)) for s in every]
            return [sample for sample, has_one in zip(every, floating, strict=True) if has_one][:: self.every]
        chosen = what_ran(self.op, every, self.kernel.backend, dtype)
        return [sample for sample, ran in zip(every, chosen, strict=True) if ran == self.kernel.name][:: self.every]

    def hold(self, sample: Sample, dtype: Any) -> None:
        """Raise `m2ml.Disagreement` where the kernel lies outside the definition's bounds."""
        (check_gradient if self.is_gradient else check_values)(self.op, sample, dtype, [self.on])

    def compiled(self, sample: Sample, dtype: Any) -> Callable[[], Any]:
        """The call of a sample as its backend compiled it; compiling may launch kernels on arrays of zeros."""
        args = in_dtype(sample, dtype)
        fn = call_of(self.op, sample)
        if self.is_gradient:
            args, fn = (args, cotangents_of(fn, args)), pullback(fn, args)
        staged, backend = Staged(fn), registry.get(self.kernel.backend)
        program = staged.trace(args, {})
        host = list(map(backend.from_host, host_leaves(staged, args, {})))
        call = backend.compile(program)
        return lambda: call(*host)


def check_kernel(op: Op, kernel: Kernel, *, every: int = 1) -> Report:
    """Try ``kernel`` on the samples of its op; what goes wrong is in the report, not raised."""
    from m2ml_kernels.metal_host.check import Report

    subject = Subject(op, kernel, every)
    if METAL_HOST in kernel.devices:
        return MetalCheck(subject).report()
    return Report(_title(kernel), {}, tuple(_steps_where_it_runs(subject)))


def _title(kernel: Kernel) -> str:
    return f"{kernel.name}, a kernel of {kernel.op} for {kernel.backend}"


def _steps_where_it_runs(subject: Subject) -> Iterator[Step]:
    from m2ml_kernels.metal_host.check import Step

    kind = registry.get(subject.kernel.backend).devices()[0].kind
    if kind not in subject.kernel.devices:
        said = f"it is for {' and '.join(subject.kernel.devices)}, and {subject.kernel.backend} has a {kind} here"
        yield Step("against the definition", remark=said, ran=False)
        return
    for name in subject.kernel.dtypes:
        if name in DTYPES:
            yield _held(f"against the definition, {name}", subject, [DTYPES[name]])


def _held(step: str, subject: Subject, dtypes: Sequence[Any]) -> Step:
    """A step that tries every sample in some dtypes, up to the first mistake."""
    from m2ml_kernels import KernelError
    from m2ml_kernels.metal_host.check import Step
    from m2ml_kernels.metal_host.findings import Finding

    count = 0
    for dtype in dtypes:
        for sample in subject.samples(dtype):
            try:
                subject.hold(sample, dtype)
            except (M2mlError, KernelError, AssertionError) as error:
                said = f"on the sample {sample.name}: {error}"
                return Step(step, (Finding("wrong result", "", 0, said),))
            count += 1
    return Step(step, remark=f"{count} samples" if count else "it takes no sample of its op", ran=bool(count))


class MetalCheck:
    """The steps of checking one Metal kernel on the host. What is launched is kept, a case for each text."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.cases: dict[tuple[str, str], Case] = {}
        self.findings: dict[tuple[str, str, int], Finding] = {}

    def report(self) -> Report:
        return self.report_of(list(self.steps()))

    def report_of(self, steps: Sequence[Step]) -> Report:
        from m2ml_kernels.metal_host.check import Report

        texts = {case.source.file: case.source.text for case in self.cases.values()}
        return Report(_title(self.subject.kernel), texts, tuple(steps))

    def steps(self) -> Iterator[Step]:
        from m2ml_kernels.metal_host import Schedule, Variant
        from m2ml_kernels.metal_host.check import VARIANTS

        forward = self.run("threads in order", dtypes=self.dtypes())
        yield self.lint()
        yield forward
        if not forward.passed or not self.cases:
            return
        yield self.run("threads in reverse order", Schedule("reverse"))
        yield self.run("threads in random order", Schedule("random", seed=1))
        yield self.each("fresh memory holds other bytes", _fresh)
        yield self.each("address sanitizer", partial(_watched, Variant(sanitizer="address")))
        yield self.each("thread sanitizer", partial(_watched, Variant(sanitizer="thread")))
        for name, (variant, schedule) in VARIANTS.items():
            yield self.run(name, schedule, variant)
        yield from self.costs()

    def dtypes(self) -> list[Any]:
        return [DTYPES[name] for name in self.subject.kernel.dtypes if name in DTYPES]

    def run(
        self,
        step: str,
        schedule: Schedule | None = None,
        variant: Variant | None = None,
        dtypes: Sequence[Any] = (np.float32,),
    ) -> Step:
        """Every sample within the bound of the definition, on the host."""
        from dataclasses import replace

        from m2ml_kernels.metal_host import Schedule, Variant, emulate

        self.findings.clear()
        with emulate(schedule=schedule or Schedule(), variant=variant or Variant(), watch=self.watch):
            held = _held(step, self.subject, dtypes)
        return replace(held, findings=(*self.findings.values(), *held.findings))

    def watch(self, case: Case, result: Result) -> None:
        for finding in result.findings:
            self.findings.setdefault((finding.kind, finding.file, finding.line), finding)
        key = case.source.text, case.kernel
        if key not in self.cases or _volume(case) > _volume(self.cases[key]):
            self.cases[key] = case

    def lint(self) -> Step:
        from dataclasses import replace

        from m2ml_kernels.metal_host.check import Step
        from m2ml_kernels.metal_host.lint import LinterMissing, lint

        found: dict[Finding, None] = {}
        try:
            for case in self.cases.values():
                text = f"{HEAD}{case.source.text}"
                above = HEAD.count("\n")
                found |= {
                    replace(finding, line=finding.line - above): None
                    for finding in lint(replace(case.source, text=text))
                }
        except LinterMissing as error:
            return Step("address spaces", remark=str(error), ran=False)
        return Step("address spaces", tuple(found), remark=f"{len(self.cases)} texts")

    def each(self, step: str, find: Callable[[Case], Sequence[Finding]]) -> Step:
        """A launch of every text, of the largest arguments it had."""
        from m2ml_kernels import KernelError
        from m2ml_kernels.metal_host import SanitizerMissing
        from m2ml_kernels.metal_host.check import Step
        from m2ml_kernels.metal_host.findings import Finding

        found: dict[Finding, None] = {}
        for case in self.cases.values():
            try:
                found |= dict.fromkeys(find(case))
            except SanitizerMissing as error:
                return Step(step, remark=str(error), ran=False)
            except KernelError as error:
                found[Finding("stopped", case.source.file, 0, str(error))] = None
        return Step(step, tuple(found), remark=f"{len(self.cases)} texts")

    def costs(self) -> Iterator[Step]:
        from m2ml_kernels.metal_host.check import Step

        for cost in costs_of(self.subject):
            yield Step(f"costs at {cost.sample.name}", remark=cost.text)


HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def _volume(case: Case) -> int:
    return sum(int(np.prod(given.shape)) for given in case.buffers.values())


def _fresh(case: Case) -> Sequence[Finding]:
    from m2ml_kernels.metal_host.check import fresh_memory

    return fresh_memory(case, case.run().buffers)


def _watched(variant: Variant, case: Case) -> Sequence[Finding]:
    return case.run(variant).findings


@dataclass(frozen=True)
class Cost:
    """What a kernel's launches cost on one sample, beside the least that the op must move and compute."""

    kernel: Kernel
    sample: Sample
    launches: Sequence[Counts]
    compulsory: int

    @property
    def moved(self) -> int:
        return sum(counts.moved for counts in self.launches)

    @property
    def flops(self) -> int:
        return sum(counts.flops for counts in self.launches)

    @property
    def ratio(self) -> float:
        """Bytes moved for each that must be."""
        return self.moved / self.compulsory if self.compulsory else 1.0

    @property
    def floor(self) -> float:
        """Seconds that the launches need at the least, one after the other, on an M2 Max."""
        return sum(counts.floor() for counts in self.launches)

    @property
    def text(self) -> str:
        return "; ".join([f"{self.ratio:.3f} of the bytes that must be", *(counts.summary for counts in self.launches)])


def costs_of(subject: Subject) -> list[Cost]:
    """Counted launches at the op's main sizes, or at its largest sample where it names none."""
    from m2ml_kernels.metal_host import Variant, emulate

    found, own = [], Path(subject.kernel.source).stem
    for sample in main_samples(subject):
        launches: list[tuple[str, Counts]] = []

        def watch(case: Case, result: Result, launches: list[tuple[str, Counts]] = launches) -> None:
            if result.counts:
                launches.append((case.source.file, result.counts))

        with emulate(variant=Variant(counted=True), watch=watch):
            call = subject.compiled(sample, np.float32)
            launches.clear()
            call()
        # a gradient's program runs the forward kernel too, which is made of another file
        counted = [counts for file, counts in launches if not own or own == Path(file).stem.removeprefix("m2ml_")]
        found.append(Cost(subject.kernel, sample, counted, _compulsory(subject, sample, counted)))
    return found


def main_samples(subject: Subject) -> list[Sample]:
    from m2ml_kernels.metal_host import emulate

    if main := list(subject.op.main()):
        return main
    with emulate():
        taken = subject.samples(np.float32)
    return [max(taken, key=lambda s: sum(np.size(x) for x in jax.tree.leaves(s.args)))] if taken else []


def _compulsory(subject: Subject, sample: Sample, launches: Sequence[Counts]) -> int:
    """By the op's own account; where it gives none, every byte that the launches touch counts once."""
    op = subject.op
    call, leaves = op.bind(in_dtype(sample, np.float32), sample.static)
    avals = [compat.abstract(leaf) for leaf in leaves]
    if subject.is_gradient and op.backward.cost:
        args = jax.tree.unflatten(call.tree, avals)
        outputs = call.with_static(op.residuals).out(leaves)
        cotangents = [x for x in jax.tree.leaves(call.out(leaves)) if compat.is_inexact(x.dtype)]
        return op.backward.cost(args, outputs, cotangents, static=call.static)[1]
    if subject.is_gradient or op.cost is None:
        return sum(counts.distinct for counts in launches)
    return call.run(op.cost, avals)[1]


COLUMNS = (
    "kernel",
    "sizes",
    "bytes moved / least",
    "flops",
    "functions",
    "cache lines used",
    "free of bank conflicts",
    "barriers, simd operations",
    "threadgroup bytes",
    "floor, M2 Max",
)


def cost_table(names: Sequence[str] = ()) -> str:
    """A table in Markdown of what the Metal kernels cost: of these ops, or of all. Kernels of one source are one."""
    wanted = [find_op(name) for name in names]
    rows = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    seen: set[str] = set()
    for op, kernel in metal_kernels():
        if (wanted and op not in wanted) or str(kernel.source or kernel.name) in seen:
            continue
        seen.add(str(kernel.source or kernel.name))
        rows += [_row(cost) for cost in costs_of(Subject(op, kernel))]
    if wanted and not seen:
        raise M2mlError(f"no Metal kernel is registered for {', '.join(names)}")
    return "\n".join(rows)


def _row(cost: Cost) -> str:
    launches = cost.launches
    arithmetic = [counts.arithmetic for counts in launches if counts.arithmetic]
    simd = sum(count for counts in launches for what, count in counts.operations.items() if "barrier" not in what)
    barriers = sum(count for counts in launches for what, count in counts.operations.items() if "barrier" in what)
    flops, functions = (sum(getattr(a, name) for a in arithmetic) for name in ("flops", "functions"))
    cells = [
        f"`{cost.kernel.name}`",
        cost.sample.name,
        f"{cost.moved:,} / {cost.compulsory:,} = {cost.ratio:.3f}",
        f"{flops:,}" if arithmetic else "not counted",
        f"{functions:,}" if arithmetic else "not counted",
        f"{min((counts.coalesced for counts in launches), default=1.0):.0%}",
        f"{min((counts.free_of_conflicts for counts in launches), default=1.0):.0%}",
        f"{barriers:,}, {simd:,}",
        f"{max((counts.threadgroup_bytes for counts in launches), default=0):,}",
        f"{cost.floor * 1e6:.2f} us",
    ]
    return f"| {' | '.join(cells)} |"
