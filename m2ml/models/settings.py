"""The configuration of a checkpoint as it was read: values are checked when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from m2ml.errors import M2mlError, in_one_line

_MISSING = object()


#: What comes of values that make no sense together.
BROKEN = (ValueError, TypeError, LookupError, ArithmeticError)

#: What a model computes in and its weights are written in.
DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class CheckpointError(M2mlError, ValueError):
    """A model's files are missing, damaged, or not what they say they are."""


@dataclass(frozen=True)
class Settings:
    """What ``config.json`` or GGUF's metadata says; ``source`` names it in errors."""

    values: Mapping[str, Any]
    source: str

    def get(self, name: str, default: Any = None) -> Any:
        """The value of ``name``; null counts as not there."""
        value = self.values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: Any = _MISSING, *, most: int = 2**31 - 1) -> int:
        """A whole number from 1 to ``most``."""
        value = self._needed(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.wrong(name, value, f"it must be a whole number from 1 to {most}")
        return value

    def integers(self, name: str, default: Any = _MISSING, *, most: int = 2**31 - 1) -> tuple[int, ...]:
        """Whole numbers from 1 to ``most``, at most as many."""
        value = self._needed(name, default)
        fits = isinstance(value, list | tuple) and len(value) <= most
        if not fits or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= most for n in value):
            raise self.wrong(name, value, f"it must be a list of whole numbers from 1 to {most}")
        return tuple(value)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self._needed(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self.wrong(name, value, "it must be a number")
        return float(value)

    def part(self, name: str) -> Settings:
        """The mapping ``name``, empty if it is not there."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "it must be a mapping")
        return Settings(value, f"{name} in {self.source}")

    def wrong(self, name: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.source} says {name} {str(value)[:60]!r}; {wanted}")

    def broken(self, kind: str, error: Exception) -> CheckpointError:
        """What to raise where the configuration makes no model, because of ``error``."""
        return CheckpointError(f"{self.source} describes no {kind[:60]} model: {in_one_line(error)[:300]}")

    def _needed(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is _MISSING:
            raise CheckpointError(f"{self.source} does not say {name}, which this architecture needs")
        return value


def check_name(name: str, what: str, path: Path) -> None:
    """Raise `CheckpointError` where the file at ``path`` has ``what`` by a name that is no line of text."""
    if not name.isprintable():
        raise CheckpointError(f"{path} has {what} with the name {name[:80]!r}, which is no line of text")


def check_dtype(dtype: str) -> None:
    """Raise `CheckpointError` for what no model computes in."""
    if dtype not in DTYPES:
        raise CheckpointError(f"a model computes in {', '.join(DTYPES)}; got {dtype}")
