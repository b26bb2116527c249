"""The table of case generators: primitive name -> generator, filled by the families of this package."""

from __future__ import annotations

import importlib
import unittest
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import jax
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.values import Array, Draw

#: A function that binds a primitive through JAX's public API, and its arguments.
Case = tuple[Callable[..., Any], Sequence[Array]]
Generator = Callable[[Draw, str], Case]

CASES: dict[str, Generator] = {}

#: Cases of each primitive that the suite spends.
EXAMPLES = 30

FAMILIES = ("contractions", "elementwise", "indexing", "linalg", "random", "reductions", "structure")


def covers(*names: str) -> Callable[[Generator], Generator]:
    """Register a generator of cases for each of ``names``; it is told which one to make."""

    def register(generator: Generator) -> Generator:
        for name in names:
            assert name not in CASES, f"{name} has a generator already"
            CASES[name] = generator
        return generator

    return register


def public(name: str, module: Any = lax) -> Callable[..., Any]:
    """A function of JAX, or a skipped test where this JAX does not have it yet."""
    function = getattr(module, name, None)
    if function is None:
        raise unittest.SkipTest(f"jax {jax.__version__} has no {module.__name__}.{name}")
    return function


def load() -> dict[str, Generator]:
    """Import every family of generators and give the table."""
    for family in FAMILIES:
        importlib.import_module(f"m2ml.equivalence.primitives.{family}")
    return CASES


#: A search by hypothesis changes earlier examples, instead of drawing new ones, once it has had this many.
FRESH = 10


def examples(run: Callable[[Draw], None], count: int, *, seed: int = 0) -> None:
    """Call ``run(draw)`` for ``count`` cases that owe little to each other; a failing one is shrunk as ever.

    In one long search most cases repeat parts of earlier ones, down to their dtypes and shapes, so there are several.
    """
    for begin in range(0, count, FRESH):

        @hypothesis.seed(f"{seed} {begin}")
        @hypothesis.settings(max_examples=min(FRESH, count - begin), database=None)
        @hypothesis.given(st.data())
        def search(data: Any) -> None:
            run(data.draw)

        search()
