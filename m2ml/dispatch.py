"""Calls of a jitted function on a backend that is not JAX: find the executable, convert leaves, run it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.tree_util import tree_flatten, tree_unflatten

from m2ml import arrays, compat
from m2ml.backend import Backend, Executable
from m2ml.debug import debug_executable
from m2ml.program import Program

if TYPE_CHECKING:
    from m2ml.staged import Staged


class _Inside(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Entry:
    """A compiled program: ``plain`` when every output leaf is the native array itself."""

    run: Executable
    out_tree: Any
    out_avals: Sequence[Any]
    plain: bool


def _signature(leaf: Any) -> Any:
    """What the program depends on in a leaf that is not a native array."""
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype
    if isinstance(leaf, jax.core.Tracer):
        raise _Inside
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)
    aval = arrays.aval_of(leaf)
    return aval.shape, aval.dtype


class Dispatch:
    """Runs calls of one jitted function on one backend.

    The key of a call is its tree, its static values and each leaf's shape and dtype; the value is an
    executable. Native leaves pass as they are; others are converted.
    """

    def __init__(self, staged: Staged, backend: Backend) -> None:
        self.staged = staged
        self.backend = backend
        self.array_type: type | None = getattr(backend, "array_type", None)
        self._entries: dict[Any, _Entry] = {}
        self._lock = threading.Lock()
        self._split = staged.split if staged.static else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        dynamic: Any = (args, kwargs)
        static: Any = ()
        if self._split:
            dynamic, static = self._split(args, kwargs)
        leaves: list[Any]
        leaves, tree = tree_flatten(dynamic)
        native: Any = self.array_type
        converted = False
        key: list[Any] = [tree, static, compat.x64_enabled()]
        try:
            for leaf in leaves:
                if type(leaf) is native:
                    key.append((leaf.shape, leaf.dtype))
                else:
                    converted = True
                    key.append(_signature(leaf))
        except _Inside:
            return self.staged.jax_jit(*args, **kwargs)
        except TypeError:
            self.staged.trace(args, kwargs)
            raise
        signature = tuple(key)
        entry = self._entries.get(signature) or self._compile(signature, args, kwargs)
        if converted:
            leaves = [x if type(x) is native else arrays.to_native(x, self.backend) for x in leaves]
        outs = entry.run(*leaves)
        if not entry.plain:
            outs = [arrays.from_native(x, aval) for x, aval in zip(outs, entry.out_avals, strict=True)]
        return tree_unflatten(entry.out_tree, outs)

    def _compile(self, signature: Any, args: Sequence[Any], kwargs: Any) -> _Entry:
        program = self.staged.trace(args, kwargs)
        with self._lock:
            if signature not in self._entries:
                self._entries[signature] = self.entry(program)
            return self._entries[signature]

    def entry(self, program: Program) -> _Entry:
        compile_: Callable[[Program], Executable] = self.backend.compile
        run = debug_executable(self.backend, program) if self.staged.debug else compile_(program)
        avals = program.jaxpr.out_avals
        return _Entry(run, program.out_tree, avals, not any(compat.is_key(a.dtype) for a in avals))
