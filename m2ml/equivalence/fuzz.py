"""Fuzz a backend from a process of its own, which may crash or hang: the program it was running becomes a finding.

The parent holds what is known and writes each finding at once, whole or not at all; the worker holds nothing that
would be lost with it. Nothing here imports hypothesis, which only the worker needs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from m2ml.equivalence.findings import Counts, Finding
from m2ml.errors import how_it_ended

#: A worker that says nothing for so many seconds hangs.
PATIENCE = 120.0

#: Characters of a file's name that are taken from a finding's key.
_LONGEST = 100

#: Run in a worker before anything else; how a test plants what crashes.
Prepare = Callable[[], None]


@dataclass
class Summary:
    """What was run, and what was found by key. ``seconds`` is the time that it took."""

    backend: str
    seed: int
    counts: Counts = field(default_factory=Counts)
    findings: dict[str, Finding] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Programs per second."""
        return self.counts.programs / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        counts = self.counts
        judged = counts.judged / counts.elements if counts.elements else 0.0
        found = ", ".join(sorted(self.findings)) or "none"
        return (
            f"{counts.programs:,} programs of {counts.equations:,} equations on {self.backend} with seed {self.seed}: "
            f"{self.rate:.1f} programs/s, {len(counts.primitives)} primitives, {judged:.0%} of {counts.elements:,} "
            f"elements judged, {counts.disagreements} disagreements; findings: {found}"
        )


class Fuzz:
    """Random programs on ``backend``, in batches that ``seed`` decides. Findings go to the folder ``out``."""

    def __init__(self, backend: str, *, seed: int = 0, out: Path | None = None, prepare: Prepare | None = None) -> None:
        self.summary = Summary(backend, seed)
        self.out, self.prepare = out, prepare
        self.running = ""
        self.next_batch = 0
        self.avoided: set[str] = set()

    def run(
        self,
        seconds: float,
        *,
        programs: int | None = None,
        patience: float = PATIENCE,
        on_progress: Callable[[Summary], None] = lambda summary: None,
    ) -> Summary:
        """Fuzz for ``seconds``, or until ``programs`` programs have run. Ctrl-C ends it as the time does."""
        began = time.monotonic()
        before = self.summary.seconds

        with _interrupted() as stopped:

            def left() -> float:
                self.summary.seconds = before + time.monotonic() - began
                enough = programs is not None and self.summary.counts.programs >= programs
                return 0.0 if enough or stopped.is_set() else began + seconds - time.monotonic()

            while left() > 0:
                with _worker(_hunt, self._task(), self.prepare) as (process, messages):
                    self._listen(process, messages, left, patience, on_progress)
            left()
        on_progress(self.summary)
        return self.summary

    def _task(self) -> dict[str, Any]:
        summary = self.summary
        return {
            "backend": summary.backend,
            "seed": summary.seed,
            "first": self.next_batch,
            "known": list(summary.findings),
            "avoided": self.avoided,
            "counts": summary.counts,
        }

    def _listen(
        self,
        process: Any,
        messages: Connection,
        left: Callable[[], float],
        patience: float,
        on_progress: Callable[[Summary], None],
    ) -> None:
        """Take in what the worker says until the time is over, or the worker is."""
        heard, wait = time.monotonic(), max(patience, PATIENCE)  # until it has started
        while left() > 0:
            if not messages.poll(min(0.2, max(left(), 0.0))):
                if time.monotonic() - heard > wait:
                    return self._lost("hang", f"nothing was heard for {wait:g} s", patience)
                continue
            heard, wait = time.monotonic(), patience
            try:
                kind, content = messages.recv()
            except (EOFError, OSError):
                process.join()
                return self._lost("crash", f"the process {how_it_ended(process.exitcode)}", patience)
            self._hear(kind, content)
            on_progress(self.summary)
        process.kill()
        with suppress(EOFError, OSError):  # what it said before it ended counts
            while True:
                self._hear(*messages.recv())
        return None

    def _hear(self, kind: str, content: Any) -> None:
        if kind == "before":
            self.running = content
        elif kind == "after":
            self.summary.counts.add(content)
        elif kind == "finding":
            self._keep(content)
        elif kind == "batch":
            self.next_batch, self.running = content + 1, ""

    def _lost(self, kind: str, said: str, patience: float) -> None:
        """The worker ended in the middle of a batch: find the equation that ends it again, and go on without it."""
        self.next_batch += 1
        if not self.running:
            key = f"{self.summary.backend} {kind} between programs"
            self._keep(Finding(key, kind, said, f'"""{key}: {said}."""\n'))
            return
        primitive, source = self._stepped(self.running, patience)
        self.avoided.add(primitive)
        key = f"{self.summary.backend} {kind} {primitive or 'of a whole program'}"
        self._keep(Finding(key, kind, said, _titled(source or self.running, f"{key}: {said}.")))
        self.running = ""

    def _stepped(self, source: str, patience: float) -> tuple[str, str]:
        """Run a program's equations one by one in a worker: name and source of the one that ends it, or nothing."""
        last, wait = ("", ""), max(patience, PATIENCE)
        with _worker(_step, {"backend": self.summary.backend, "source": source}, self.prepare) as (_, messages):
            try:
                while messages.poll(wait):
                    kind, last = messages.recv()
                    if kind == "end":
                        return "", ""
                    wait = patience
            except (EOFError, OSError):
                pass
        return last

    def _keep(self, finding: Finding) -> None:
        """A finding as it was met is replaced once it is cut down."""
        self.summary.findings[finding.key] = finding
        if self.out is not None:
            save(finding, self.out)


def save(finding: Finding, folder: Path) -> Path:
    """Write the finding's source to a file named after its key; the file is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "_", finding.key.lower()).strip("_")
    if len(stem) > _LONGEST:  # what is cut off may be all that tells it from another
        stem = f"{stem[:_LONGEST]}_{hashlib.sha256(finding.key.encode()).hexdigest()[:8]}"
    path = folder / f"{stem}.py"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(finding.source)
    partial.replace(path)
    return path


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that it interrupts nothing half done; a second Ctrl-C is as ever."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    usual = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, usual)


def _titled(source: str, title: str) -> str:
    """``source`` with the first line of its docstring replaced."""
    return re.sub(r'\A"""[^\n"]*', lambda _: f'"""{title}', source)


# Workers ----------------------------------------------------------------------------------------------


@contextmanager
def _worker(
    target: Callable[..., None], task: dict[str, Any], prepare: Prepare | None
) -> Iterator[tuple[Any, Connection]]:
    """A process that runs ``target(connection, **task)``; it is killed when the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(target, theirs, task, prepare), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _work(target: Callable[..., None], messages: Connection, task: dict[str, Any], prepare: Prepare | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # MLX on a CPU starts a C++ compiler for every fused kernel
    if prepare:
        prepare()
    target(messages, **task)


def _hunt(messages: Connection, backend: str, seed: int, first: int, counts: Counts, **known: Any) -> None:
    """Run one batch after the other and tell of each program before and after it runs."""
    from m2ml.equivalence.hunt import Hunt, forget_compiled

    hunt = Hunt(
        backend,
        seed=seed,
        ops=True,
        **known,
        before=lambda source: messages.send(("before", source)),
        after=lambda new: messages.send(("after", new)),
        found=lambda finding: messages.send(("finding", finding)),
    )
    hunt.counts.add(counts)
    messages.send(("start", None))
    number = first
    while True:
        try:
            hunt.batch(number)
        except Exception as error:  # whatever JAX or a generator raises: it costs this batch
            said = "".join(traceback.format_exception(error))
            key = f"{backend} no program: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            finding = Finding(key, "error", said, "".join(f"# {line}\n" for line in said.splitlines()))
            messages.send(("finding", finding))
        messages.send(("batch", number))
        forget_compiled()
        number += 1


def _step(messages: Connection, backend: str, source: str) -> None:
    """Run the equations of a written program one by one; each is announced before it runs."""
    from m2ml.equivalence.bisect import op_program
    from m2ml.equivalence.equations import run_equation
    from m2ml.equivalence.measure import run_program
    from m2ml.equivalence.reproduce import loaded, source_of, with_ops
    from m2ml.equivalence.smaller import alone, single_equations
    from m2ml.plugins import registry
    from m2ml.staged import Staged

    messages.send(("start", ("", "")))
    function, inputs = loaded(source)
    program = Staged(function).trace(inputs, {})
    for equation, arrays in single_equations(with_ops(program), inputs):
        messages.send(("equation", (equation.name, source_of(with_ops(alone(program, equation)), arrays, backend))))
        if equation.kernel is None:
            run_equation(registry.get(backend), equation, arrays)
        else:
            run_program(backend, op_program(equation), arrays)
    messages.send(("end", None))
