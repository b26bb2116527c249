"""What `Jitted.explain` says: how a call runs on a backend and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m2ml import arrays
from m2ml.kernel import select
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.winners import DEFINITION, milliseconds

if TYPE_CHECKING:
    from m2ml.staged import Staged


@dataclass(frozen=True)
class Explanation:
    """How a program runs. ``str()`` of it is the report; ``notes`` are the engine's own sentences."""

    program: Program
    backend: str
    device: str
    notes: Sequence[str] = ()
    times: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        cost, primitives = self.program.cost, self.program.primitives
        common = sorted(primitives.items(), key=lambda item: (-item[1], item[0]))
        lines = [
            f"{self.program.name}{arrays.describe(self.program.jaxpr.in_avals)} runs on {self.backend}: {self.device}",
            f"{sum(primitives.values())} equations of {len(primitives)} primitives: "
            + ", ".join(f"{name} {count}" for name, count in common),
            f"{cost.flops:,} flops, {cost.bytes:,} bytes in and out, {cost.peak_bytes:,} bytes live at the peak"
            + ("" if cost.bounded else " (each while loop counted once)"),
            *self.notes,
            *(f"{name}: {what}" for name, what in self.times.items()),
            f"fingerprint {self.program.fingerprint[:16]}",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def explain(staged: Staged, backend: str, args: Any, kwargs: Any) -> Explanation:
    """Explain a call of ``staged`` on ``backend``; for ``"auto"``, the choice and its measurements."""
    program, times = staged.trace(args, kwargs), dict[str, str]()
    if backend == "auto":
        from m2ml.auto import choice_for

        backend, times = choice_for(staged, program, args, kwargs)
    engine = registry.get(backend)
    device = engine.devices()[0]
    notes = getattr(engine, "explain", lambda program: ())(program)
    notes = [*notes, *_ops(program, engine.name, device.kind)]
    return Explanation(program, backend, f"{device.name} ({device.kind})", notes, times)


def _ops(program: Program, backend: str, device: str) -> list[str]:
    """Per op what runs it, and why the kernels that do not decline."""
    said: Counter[str] = Counter()

    def note(call: Any, avals: Sequence[Any]) -> Any:
        chosen = select(call, avals, backend, device)
        what = f"kernel {chosen.kernel.name}" if chosen.kernel else "its definition"
        ran = chosen.kernel.name if chosen.kernel else DEFINITION
        what += f", measured {milliseconds(chosen.times[ran])}" if ran in chosen.times else ""
        if chosen.kernel and DEFINITION in chosen.times:
            what += f"; its definition: measured {milliseconds(chosen.times[DEFINITION])}"
        why = "".join(f"; {name}: {reason}" for name, reason in chosen.reasons.items())
        said[f"{call.name}: {what}{why}"] += 1
        return chosen.run

    program.code_with_ops(note)
    return [f"{line} ({count} calls)" if count > 1 else line for line, count in said.items()]
