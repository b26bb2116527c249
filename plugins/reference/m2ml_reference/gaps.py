"""What the reference does not do, each with its reason."""

from __future__ import annotations

from m2ml.backend import Gap

GAPS: tuple[Gap, ...] = ()
