"""Functions of JAX and Flax that a library has replaced for the whole process, put back while m2ml traces.

A plugin of JAX may put functions of its own in place of ``jax.nn.gelu``, or of a Flax layer's ``__call__``, the moment
JAX starts, whichever platform is used; they may carry primitives that one platform alone knows, lack transformations,
or mean something else. What m2ml traces is what JAX and Flax define: wherever a module holds a replacement under the
function's own name, the original that the replacement keeps stands in its place until the trace ends. Then all is as it
was: outside m2ml the library has its way.

What was captured under another name cannot be found; the primitives it leaves in a program are run by their own
definitions (`m2ml.compat.foreign_definition`).
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax


@dataclass(frozen=True)
class Replaced:
    """``name`` of ``owner``, a module or a class, is ``replacement``, whose library keeps ``original``, or None."""

    owner: Any
    name: str
    replacement: Any
    original: Any

    @property
    def title(self) -> str:
        """``jax.nn.gelu``."""
        home = self.owner.__name__ if isinstance(self.owner, ModuleType) else self.owner.__qualname__
        return f"{home}.{self.name}"

    @property
    def library(self) -> str:
        return _home(self.replacement)


def _home(function: Any) -> str:
    return str(getattr(function, "__module__", "") or "")


def _is_of(function: Any, package: str) -> bool:
    return _home(function).partition(".")[0] == package


def find_replaced() -> list[Replaced]:
    """What is not JAX's or Flax's own among ``jax.nn`` and the layers of ``flax.nnx``, in no time where nothing is."""
    found = [
        Replaced(jax.nn, name, value, _original(value, "jax", name))
        for name, value in vars(jax.nn).items()
        if callable(value) and not _is_of(value, "jax")
    ]
    nnx = sys.modules.get("flax.nnx")
    for layer in vars(nnx).values() if nnx else ():
        call = vars(layer).get("__call__") if isinstance(layer, type) and _is_of(layer, "flax") else None
        if call is not None and not _is_of(call, "flax"):
            found.append(Replaced(layer, "__call__", call, _original(call, "flax", f"{layer.__qualname__}.__call__")))
    return found


def _original(replacement: Any, package: str, qualname: str) -> Any:
    """The function of ``package`` called ``qualname`` that a replacement keeps in its closure or its module."""
    cells = (cell.cell_contents for cell in getattr(replacement, "__closure__", None) or ())
    kept = (*cells, *list(getattr(replacement, "__globals__", {}).values()))
    for value in kept:
        if callable(value) and _is_of(value, package) and getattr(value, "__qualname__", "") == qualname:
            return value
    return None


_lock = threading.RLock()
_depth = 0
_put_back: list[tuple[Any, str, Any]] = []


@contextlib.contextmanager
def stock_functions() -> Iterator[None]:
    """Have JAX's and Flax's own functions in their places inside; several threads may be inside at once."""
    global _depth
    with _lock:
        _depth += 1
        replaced = find_replaced() if _depth == 1 else []
        _restore(replaced)
    try:
        if replaced:
            _say(report(replaced))
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                while _put_back:
                    owner, name, value = _put_back.pop()
                    setattr(owner, name, value)


def _restore(replaced: list[Replaced]) -> None:
    for one in replaced:
        if one.original is not None:
            for owner in _holders(one):
                _put_back.append((owner, one.name, one.replacement))
                setattr(owner, one.name, one.original)


def _holders(one: Replaced) -> list[Any]:
    """Whoever holds the replacement under the function's own name."""
    if not isinstance(one.owner, ModuleType):
        return [one.owner]
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [module for module in modules if vars(module).get(one.name) is one.replacement]


def report(replaced: list[Replaced]) -> str:
    """One sentence on what was replaced and what m2ml does about it; ``""`` when nothing was."""
    if not replaced:
        return ""
    back = ", ".join(one.title for one in replaced if one.original is not None)
    lost = ", ".join(one.title for one in replaced if one.original is None)
    libraries = ", ".join(sorted({one.library for one in replaced}))
    said = [f"{libraries} has put functions of its own in place of {', '.join(one.title for one in replaced)}"]
    said += [f"m2ml puts {back} back while it traces"] if back else []
    said += [f"{lost} cannot be put back, since the original is not kept"] if lost else []
    return "; ".join(said)


@functools.cache
def _say(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def traced_with_stock(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, whose Python runs with `stock_functions`: when it is traced, and not when what was compiled is called."""

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        with stock_functions():
            return fn(*args, **kwargs)

    return run
