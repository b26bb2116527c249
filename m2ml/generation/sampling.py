"""How the next token is chosen, and the random numbers for it: the same on every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.errors import M2mlError


@dataclass(frozen=True)
class Sampling:
    """The likeliest token (``temperature`` 0), or one drawn as `m2ml.ops.sample_token` says.

    Raises `M2mlError` for settings outside their range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("temperature", self.temperature == 0 or 1e-6 <= self.temperature < 1e6, "0, or from 1e-6 on"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not fits:
                raise M2mlError(f"{name} is {getattr(self, name)}; it must be {wanted}")

    @property
    def random(self) -> bool:
        return self.temperature > 0

    def settings(self) -> dict[str, Any]:
        """Arguments of `m2ml.ops.sample_token`."""
        return {
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "top_p": float(self.top_p),
            "min_p": float(self.min_p),
        }


class Bits:
    """uint32 random numbers, one per row and token, from a seed: made on the host, so that no backend matters."""

    def __init__(self, sampling: Sampling, seed: int, rows: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed)) if sampling.random else None
        self._rows = rows

    def next(self) -> np.ndarray[Any, Any] | None:
        """``[rows]``, or None where nothing is drawn."""
        if self._generator is None:
            return None
        return self._generator.integers(0, 2**32, self._rows, np.uint32)
