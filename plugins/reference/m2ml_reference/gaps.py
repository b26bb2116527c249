"""What the reference does not do, each with its reason."""

from __future__ import annotations

from m2ml.backend import Gap

GAPS: tuple[Gap, ...] = (
    Gap("rng_uniform", "*", "its numbers are whatever the device's own generator gives, so there is no right answer"),
)
