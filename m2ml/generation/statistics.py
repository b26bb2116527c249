"""How fast a generation is and what it takes."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from m2ml.plugins import registry


@dataclass
class Statistics:
    """Counted while tokens come. Times are in seconds, memory in bytes."""

    backend: str
    prompt_tokens: int = 0
    tokens: int = 0
    _began: float = field(default_factory=time.perf_counter)
    _moments: list[tuple[float, int]] = field(default_factory=list)  #: first, second and last, and the tokens by then

    def add(self, count: int) -> None:
        """``count`` tokens have come, one of each row that goes on."""
        self.tokens += count
        self._moments[2:] = [(time.perf_counter(), self.tokens)]

    @property
    def first_token_seconds(self) -> float | None:
        """From the call to the first token, compilation included."""
        return self._moments[0][0] - self._began if self._moments else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all rows together, after the second token of each: the step of the second may have to be compiled."""
        if len(self._moments) < 3:
            return None
        (began, before), (ended, tokens) = self._moments[1:]
        return (tokens - before) / max(ended - began, 1e-9)

    @property
    def peak_memory(self) -> int:
        """The most that this process has held, and what the engine says where that is more."""
        unit = 1 if sys.platform == "darwin" else 1024
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return max(held, registry.get(self.backend).memory().peak or 0)

    def record(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "first_token_seconds": self.first_token_seconds,
            "tokens_per_second": self.tokens_per_second,
            "peak_memory_bytes": self.peak_memory,
        }

    def __str__(self) -> str:
        speed, first = self.tokens_per_second, self.first_token_seconds
        parts = [f"{self.prompt_tokens} tokens read", f"{self.tokens} written"]
        parts += [f"{speed:.1f} tokens/s"] if speed else []
        parts += [f"first after {first:.2f} s"] if first is not None else []
        return ", ".join([*parts, f"peak memory {self.peak_memory / 1e6:,.0f} MB", f"on {self.backend}"])
