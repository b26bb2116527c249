"""Whole Flax NNX modules as arguments: `m2ml.jit` then acts like ``nnx.jit``.

A module is mutable; a traced program is not. A call that holds modules is split into their state, which becomes
an argument and a result, and their structure, which is static; afterwards the modules are updated in place.
Flax is used only if the caller has imported it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


class HasModules(Exception):
    """Raised while tracing when an argument holds a whole module."""


def _nnx() -> Any:
    return sys.modules.get("flax.nnx")


def _is_module(value: Any) -> bool:
    nnx = _nnx()
    base: Any = getattr(nnx, "Pytree", None) or getattr(nnx, "Object", ())
    return isinstance(value, base)


def find(tree: Any) -> list[Any]:
    """The modules in ``tree``, outermost ones only."""
    if _nnx() is None:
        return []
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_module) if _is_module(leaf)]


def refuse_modules(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, raising `HasModules` instead of running on a module whose updates a plain trace would lose."""

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if find((args, kwargs)):
            raise HasModules
        return fn(*args, **kwargs)

    return checked


@dataclass(frozen=True)
class Static:
    """A static argument on its way through a call with modules."""

    value: Any


@dataclass(frozen=True)
class _Structure:
    """Hashable part of a call: the modules' graph, the tree of the arguments, and what stands where in it."""

    graphdef: Any
    tree: Any
    modules: tuple[int, ...]
    constants: tuple[tuple[int, Any], ...]


def pure(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` on modules as a pure function of their state: ``(state, rest; structure) -> (new state, result)``."""

    def with_state(state: Any, rest: Any, structure: _Structure) -> Any:
        nnx = _nnx()
        modules = nnx.merge(structure.graphdef, state)
        known = dict(structure.constants) | dict(zip(structure.modules, modules, strict=True))
        dynamic = iter(rest)
        leaves = [known[i] if i in known else next(dynamic) for i in range(structure.tree.num_leaves)]
        args, kwargs = jax.tree.unflatten(structure.tree, leaves)
        result = fn(*args, **kwargs)
        return nnx.state(modules), result

    with_state.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return with_state


def call(jitted: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a function made by `pure` and jitted, on the modules in ``args`` and ``kwargs``, and update them.

    Static arguments come wrapped in `Static`.
    """
    nnx = _nnx()
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: _is_module(x) or isinstance(x, Static))
    places = tuple(i for i, leaf in enumerate(leaves) if _is_module(leaf))
    constants = tuple((i, leaf.value) for i, leaf in enumerate(leaves) if isinstance(leaf, Static))
    modules = [leaves[i] for i in places]
    graphdef, state = nnx.split(modules)
    rest = [leaf for leaf in leaves if not _is_module(leaf) and not isinstance(leaf, Static)]
    new_state, result = jitted(state, rest, structure=_Structure(graphdef, tree, places, constants))
    nnx.update(modules, new_state)
    return result
