"""Gradients, jvp, vmap and their compositions: whole functions within the measured bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from m2ml.equivalence.conformance.functions import FUNCTIONS, REVERSE_ONLY, TRANSFORMS, values, with_own_vjp
from m2ml.equivalence.conformance.suite import Check, Subject


def checks(subject: Subject) -> Iterable[Check]:
    for function in FUNCTIONS:
        for transform in TRANSFORMS:
            if function is not with_own_vjp or transform not in REVERSE_ONLY:
                yield Check("gradients", f"{transform} of {function.__name__.strip('_')}", _agrees(function, transform))


def _agrees(function: Callable[..., Any], transform: str) -> Callable[[Subject], None]:
    argument = values(3, 5) if "vmap" in transform else values(5)
    return lambda subject: subject.agree(TRANSFORMS[transform](function), argument)
