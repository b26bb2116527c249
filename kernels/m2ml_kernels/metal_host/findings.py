"""What launches show: one record for each mistake, and where it is."""

from __future__ import annotations

from dataclasses import dataclass

# A simdgroup operation that only some lanes reach is defined; it is told, and is no mistake by itself.
NOTES = {"partial simd operation"}


@dataclass(frozen=True)
class Finding:
    """One thing a launch showed to be wrong, or worth knowing: its kind, where, by which thread first, how often."""

    kind: str
    file: str
    line: int
    what: str
    count: int = 1
    thread: tuple[int, ...] = ()
    threadgroup: tuple[int, ...] = ()

    @property
    def is_note(self) -> bool:
        return self.kind in NOTES

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        who = f", by thread {self.thread} of threadgroup {self.threadgroup}" if self.thread else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{place}{self.kind}: {self.what}{who}{times}"
