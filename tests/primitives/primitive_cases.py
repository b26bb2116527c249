"""The table of case generators: primitive name -> generator, filled by the ``cases_*`` modules."""

import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import pytest
from jax import lax
from primitive_values import Array, Draw

#: A function that binds a primitive through JAX's public API, and its arguments.
Case = tuple[Callable[..., Any], Sequence[Array]]
Generator = Callable[[Draw, str], Case]

CASES: dict[str, Generator] = {}


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
        pytest.skip(f"jax {jax.__version__} has no {module.__name__}.{name}")
    return function


def load() -> dict[str, Generator]:
    """Import every family of generators and give the table."""
    for path in sorted(pathlib.Path(__file__).parent.glob("cases_*.py")):
        importlib.import_module(path.stem)
    return CASES
