"""`Staged`: a function, the arguments that are static or donated, and how to trace it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from m2ml import arrays, compat, modules, stock
from m2ml.op import definitions_only
from m2ml.program import Program


class Staged:
    """What the bindings of one jitted function share: its ``jax.jit`` form and one caller per backend.

    ``callers`` and ``bindings`` are filled by `m2ml.jit`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        static: tuple[str, ...] = (),
        donate: tuple[str, ...] = (),
        strict: bool = False,
        debug: bool = False,
        kernels: bool = True,
    ) -> None:
        self.fn, self.static, self.donate, self.strict, self.debug = fn, static, donate, strict, debug
        self.kernels = kernels
        self.name = getattr(fn, "__name__", type(fn).__name__)
        traced = stock.traced_with_stock(fn if kernels else definitions_only(fn))
        self.jax_jit = jax.jit(modules.refuse_modules(traced), static_argnames=static, donate_argnames=donate)
        self.signature = inspect.signature(fn) if static else None
        self.callers: dict[str, Callable[..., Any]] = {}
        self.bindings: dict[str, Any] = {}

    def split(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[tuple[str, Any], ...]]:
        """Separate a call into its dynamic ``(args, kwargs)`` and its static values by name."""
        if self.signature is None:
            return (tuple(args), dict(kwargs)), ()
        bound = self.signature.bind(*args, **kwargs)
        static = tuple((n, bound.arguments[n]) for n in self.static if n in bound.arguments)
        positional = list(self.signature.parameters)
        dynamic = tuple(a for i, a in enumerate(args) if i >= len(positional) or positional[i] not in self.static)
        return (dynamic, {k: v for k, v in kwargs.items() if k not in self.static}), static

    def mark_static(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], mark: Callable[[Any], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with ``mark`` around each of its static arguments."""
        names = [*self.signature.parameters, *[""] * len(args)] if self.signature else [""] * len(args)
        marked = tuple(mark(a) if n in self.static else a for a, n in zip(args, names, strict=False))
        return marked, {k: mark(v) if k in self.static else v for k, v in kwargs.items()}

    def trace(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
        """Trace a call; no array is read and no backend is started."""
        dynamic, static = self.split(args, kwargs)
        flat, in_tree = jax.tree_util.tree_flatten_with_path(dynamic)
        avals = arrays.check_leaves(flat, self.name)
        abstract_args, abstract_kwargs = jax.tree.unflatten(in_tree, avals)
        abstract_args, abstract_kwargs = self._insert(dict(static), args, abstract_args), {**kwargs, **abstract_kwargs}
        jaxpr, out_tree, donated = compat.trace(self.jax_jit, abstract_args, abstract_kwargs)
        return Program(self.name, jaxpr, in_tree, out_tree, donated, self.strict)

    def _insert(self, static: Mapping[str, Any], args: Sequence[Any], dynamic: Sequence[Any]) -> list[Any]:
        """Positional arguments with the static ones back in their places."""
        if self.signature is None:
            return list(dynamic)
        rest, names = iter(dynamic), [*self.signature.parameters, *[""] * len(args)]
        return [value if name in static else next(rest) for value, name in zip(args, names, strict=False)]
