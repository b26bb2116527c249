"""Whole programs on a provider's platform: what it lacks is refused or runs on the CPU, never silently narrowed."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from m2ml import Device, Equation, Gap, XlaBackend, compat
from m2ml.backend import Executable
from m2ml.errors import BackendUnavailable, ExecutionError, FallbackWarning, UnsupportedDtype, UnsupportedPrimitive
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml_jax_metal import kernels, rewrites
from m2ml_jax_metal.known_bad import KnownBad
from m2ml_jax_metal.ladder import Ask, Candidate, Ladder, climb
from m2ml_jax_metal.machine import Machine, read_machine
from m2ml_jax_metal.probe import ask as ask_in_a_process

#: Primitives that call back into Python.
CALLBACKS = ("pure_callback", "io_callback", "debug_callback", "debug_print")

#: Arrays of up to this many bytes are waited for by reading them whole.
_SMALL = 1 << 16


class JaxMetalBackend(XlaBackend):
    """JAX on an Apple GPU by one provider. Programs run whole on its platform, or whole on the CPU."""

    #: How this provider was found.
    ladder: Ladder | None = None

    #: Calls go through `compile`, which looks at the program before the provider sees it.
    jit = None  # type: ignore[assignment]

    def __init__(self, candidate: Candidate) -> None:
        self.provider, self.entries = candidate.provider, candidate.entries
        self.title = str(candidate.distribution)
        self.donates = self.provider.donation
        super().__init__("jax_metal", self.provider.platform)
        self.gaps = tuple(self._gaps())
        self._first = jax.jit(lambda *arrays: [x.reshape(-1)[:1] for x in arrays])

    def _gaps(self) -> Iterable[Gap]:
        for dtype in self.provider.missing:
            yield Gap("*", dtype, f"{self.provider.distribution} has it not; the backend 'cpu' has")
        yield from (gap for gap in XlaBackend.gaps if gap.dtype not in self.provider.missing)
        if not self.provider.callbacks:
            for name in CALLBACKS:
                yield Gap(name, "*", f"{self.provider.distribution} cannot call Python; runs on the CPU")
        for entry in self.entries:
            if entry.action in ("fallback", "refuse") and entry.primitive and not entry.one_equation:
                does = "runs on the CPU" if entry.action == "fallback" else "refused"
                yield Gap(entry.primitive, "*", f"{entry.distribution} {entry.what}; {does}")

    def diagnose(self) -> list[str]:
        """Lines for `m2ml.doctor`: what was found on the way here."""
        return self.ladder.lines if self.ladder else []

    def devices(self) -> Sequence[Device]:
        return tuple(replace(d, name=f"{d.name.partition(' (')[0]} ({self.title})") for d in super().devices())

    # Arrays -------------------------------------------------------------------------------------------

    def from_hosts(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
        """Contiguous before they cross: views with negative strides have arrived as other numbers."""
        return super().from_hosts([np.asarray(array, order="C") for array in arrays])

    def wait(self, arrays: Sequence[Any]) -> None:
        """Where ``block_until_ready`` returns at once, one element of each array is read."""
        super().wait(arrays)
        if not self.provider.waits:
            some = [x for x in arrays if x.size and not compat.is_key(x.dtype)]
            small = [x for x in some if x.nbytes <= _SMALL]
            large = [x for x in some if x.nbytes > _SMALL]
            for x in (*small, *(self._first(*large) if large else ())):
                self.to_host(x)

    # Programs -----------------------------------------------------------------------------------------

    def compile(self, program: Program) -> Executable:
        self._refuse_dtypes(program)
        found = self._goes_wrong(program.code.equations())
        if found is not None:
            equation, reason, refused = found
            if refused:
                raise UnsupportedPrimitive(f"{self.title} {reason}; {equation.describe()}; run it on 'cpu'")
            return self._on_cpu(program, f"{reason}: {equation.describe()}", equation.name)
        return _Guarded(self, program, super().compile(program))

    def _refuse_dtypes(self, program: Program) -> None:
        for aval in (*program.jaxpr.in_avals, *program.jaxpr.out_avals, *program.code.avals):
            name = str(aval.dtype)
            if name in self.provider.missing:
                raise UnsupportedDtype(
                    f"{program.name} uses {name}, which {self.title} has not; use the backend 'cpu', or another dtype"
                )

    def _goes_wrong(self, equations: Iterable[Equation], one: bool = False) -> tuple[Equation, str, bool] | None:
        """The first equation that must not run here, why, and whether it may not run on the CPU either."""
        acting = [e for e in self.entries if e.action in ("fallback", "refuse") and e.primitive]
        acting = [e for e in acting if one or not e.one_equation]
        for equation in equations:
            if equation.name in CALLBACKS and not self.provider.callbacks:
                return equation, f"{self.title} cannot call Python", False
            for entry in acting:
                if entry.meets(equation):
                    return equation, f"{self.title} {entry.what}", entry.action == "refuse"
        return None

    def _on_cpu(self, program: Program, reason: str, primitive: str) -> Executable:
        """The whole program on the CPU, and a warning; refused when strict. Results come back to the device."""
        if program.strict:
            raise UnsupportedPrimitive(
                f"{program.name} does not run on jax_metal: {reason}; strict=True forbids the CPU"
            )
        warnings.warn(FallbackWarning(f"{program.name} runs on the CPU: {reason}", primitive), stacklevel=2)
        cpu: Any = registry.get("cpu")
        run = cpu.compile(replace(program, donated=(False,) * len(program.donated)))

        def on_cpu(*args: Any) -> list[Any]:
            outs = run(*(jax.device_put(x, cpu.device) for x in args))
            return [jax.device_put(y, self.device) for y in outs]

        return on_cpu

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        if self._goes_wrong([equation], one=True) is None:
            return super().apply(equation, arrays)
        cpu: Any = registry.get("cpu")
        outs = cpu.apply(equation, [jax.device_put(x, cpu.device) for x in arrays])
        return [jax.device_put(y, self.device) for y in outs]

    def lacks(self, error: BaseException) -> bool:
        """Whether an error says that the provider has no such operation, rather than that the program is wrong."""
        return any(re.search(pattern, str(error)) for pattern in self.provider.unsupported)

    def explain(self, program: Program) -> list[str]:
        """Sentences for `Jitted.explain`."""
        found = self._goes_wrong(program.code.equations())
        if found is not None:
            return [f"the whole program runs on the CPU: {found[1]}: {found[0].describe()}"]
        acting = [e for e in self.entries if e.action == "rewrite" and e.primitive in program.primitives]
        rewritten = [f"{e.primitive} is lowered otherwise, since {self.title} {e.what}" for e in acting]
        donated = ["donated arguments are kept: it cannot reuse them"] if any(program.donated) > self.donates else []
        where = f"the whole program runs on the JAX platform {self.platform!r} of {self.title}"
        return [where, *rewritten, *donated]


class _Guarded:
    """A compiled program that moves to the CPU, once and for all, when the provider says it lacks an operation."""

    def __init__(self, backend: JaxMetalBackend, program: Program, run: Executable) -> None:
        self._backend, self._program, self._run = backend, program, run

    def __call__(self, *args: Any) -> Sequence[Any]:
        try:
            return self._run(*args)
        except UnsupportedPrimitive as error:
            reason = str(error)
        except ExecutionError as error:
            if not self._backend.lacks(error) or any(x.is_deleted() for x in args):
                raise
            reason = str(error)
        self._run = self._backend._on_cpu(self._program, reason, "")
        return self._run(*args)


def find_backend(machine: Machine | None = None, ask: Ask = ask_in_a_process) -> JaxMetalBackend:
    """The backend of the provider that passes every rung; otherwise `m2ml.BackendUnavailable` with the reason."""
    ladder = climb(machine or read_machine(), ask)
    try:
        if ladder.chosen is None:
            raise BackendUnavailable(ladder.reason)
        backend = start(ladder.chosen)
    except BackendUnavailable as error:
        for line in ladder.lines:
            error.add_note(line)
        raise
    backend.ladder = ladder
    return backend


def start(candidate: Candidate) -> JaxMetalBackend:
    """The last rung: make JAX start the provider's platform, and the CPU beside it."""
    platform = candidate.provider.platform
    _refuse_other_platforms(candidate)
    for name, value in candidate.environment().items():
        os.environ.setdefault(name, value)
    before = compat.jax_platforms()
    compat.set_jax_platforms(_with_cpu(before or platform))
    try:
        backend = JaxMetalBackend(candidate)
    except BackendUnavailable as error:
        compat.set_jax_platforms(before)
        raise BackendUnavailable(
            f"JAX could not start the platform {platform!r} of {candidate.distribution} ({error}); if JAX was used "
            f"before jax_metal was first asked for, set JAX_PLATFORMS={platform},cpu"
        ) from error
    kernels.use(candidate.provider)
    rewrites.register(_rewrites(candidate.entries), platform)
    return backend


def _refuse_other_platforms(candidate: Candidate) -> None:
    platform, asked = candidate.provider.platform, compat.jax_platforms()
    if asked and platform not in asked.split(","):
        raise BackendUnavailable(
            f"JAX was told to start {asked!r} only (JAX_PLATFORMS or jax_platforms), and {candidate.distribution} is "
            f"{platform!r}; unset it, or set JAX_PLATFORMS={platform},cpu"
        )


def _with_cpu(platforms: str) -> str:
    """Beside a provider the CPU must be there: programs that cannot run on it go there."""
    return platforms if "cpu" in platforms.split(",") else f"{platforms},cpu"


def _rewrites(entries: Iterable[KnownBad]) -> list[str]:
    return [entry.rewrite for entry in entries if entry.action == "rewrite"]
