"""Which backend a call runs on: a name given to `jit`, a `use` block, the default, the environment, ``cpu``."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token

from m2ml.errors import BackendNotFound
from m2ml.plugins import registry

ENVIRONMENT = "M2ML_BACKEND"

_block: ContextVar[str | None] = ContextVar("m2ml_backend", default=None)
_default: str = os.environ.get(ENVIRONMENT) or "cpu"


def current() -> str:
    """Name of the backend that a call without a backend of its own runs on.

    The environment variable ``M2ML_BACKEND`` is read once, when m2ml is imported.
    """
    return _block.get() or _default


def check_name(name: str) -> str:
    """``name`` if it is registered or ``"auto"``; otherwise raises `m2ml.BackendNotFound` listing what exists."""
    if not isinstance(name, str):
        raise BackendNotFound(f"a backend is chosen by its name, a string; got {type(name).__name__}")
    if name != "auto" and name not in registry.names():
        registry.get(name)
    return name


class use:  # noqa: N801 - reads as a verb, like jax.default_device
    """Choose the backend: for a block, ``with m2ml.use("mlx"): ...``, or from here on, ``m2ml.use("mlx")``.

    A block is local to its thread or task; the default belongs to the process. Raises `m2ml.BackendNotFound`
    for a name that is not registered.

    >>> import m2ml
    >>> with m2ml.use("reference"):
    ...     m2ml.current()
    'reference'
    """

    def __init__(self, name: str) -> None:
        global _default
        self._name = check_name(name)
        self._previous, _default = _default, self._name
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> None:
        global _default
        if not self._tokens:
            _default = self._previous
        self._tokens.append(_block.set(self._name))

    def __exit__(self, *exc: object) -> None:
        _block.reset(self._tokens.pop())
