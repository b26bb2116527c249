"""What fuzzing counts and what it finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """A disagreement, an error, a crash or a hang. ``key`` is the same for what is thought to be the same fault.

    ``source`` is a Python file that shows it; ``said`` the report.
    """

    key: str
    kind: str
    said: str
    source: str


@dataclass
class Counts:
    """What was run so far. ``judged`` of ``elements`` results were finite or exact and not decided by rounding."""

    programs: int = 0
    equations: int = 0
    elements: int = 0
    judged: int = 0
    fallbacks: int = 0
    disagreements: int = 0
    primitives: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        for name in ("programs", "equations", "elements", "judged", "fallbacks", "disagreements"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.primitives.update(other.primitives)
        self.blocks.update(other.blocks)
