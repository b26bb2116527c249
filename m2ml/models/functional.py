"""A Flax NNX module as two pure functions of a plain tree of parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from m2ml.models.layers import modules

#: Nested dictionaries of arrays: the parameters of a module by attribute name (and by index in a list of modules).
Params = Any


@dataclass(frozen=True, eq=False)
class Functional:
    """``init(key) -> params`` and ``apply(params, *inputs) -> outputs``; both can be traced."""

    make: Callable[[Any], Any]

    def init(self, key: jax.Array) -> Params:
        """Initial parameters drawn from a typed random key (``jax.random.key``)."""
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(key)), nnx.Param))

    def apply(self, params: Params, *inputs: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """The module with ``params``, called on the inputs; ``method`` names another of its methods."""
        graph, abstract = self._abstract
        state = _copied(abstract)
        nnx.replace_by_pure_dict(state, params)
        return getattr(nnx.merge(graph, state), method)(*inputs, **kwargs)

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any]:
        """The module's structure and its state without values."""
        graphs = []

        def state() -> Any:
            graph, found = nnx.split(self.make(_OneKey(jax.random.key(0))))
            graphs.append(graph)
            return found

        abstract = jax.eval_shape(state)
        return graphs[0], abstract

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`, without computing any."""
        return jax.eval_shape(self.init, jax.random.key(0))


class _OneKey:
    """In place of `nnx.Rngs` where only shapes matter: under tracing, counting keys takes longer than all the rest."""

    def __init__(self, key: jax.Array) -> None:
        self._key = key

    def __call__(self) -> jax.Array:
        return self._key

    def __getattr__(self, stream: str) -> _OneKey:
        return self


def repeated(make: Callable[..., nnx.Module], settings: Sequence[Any], *, rngs: Any) -> Any:
    """``make(setting, rngs=rngs)`` for each setting, as an attribute Flax accepts.

    Where only shapes matter, the modules of equal settings are copies of one: the layers of a deep model.
    """
    if not isinstance(rngs, _OneKey):
        return modules([make(setting, rngs=rngs) for setting in settings])
    made = {setting: nnx.split(make(setting, rngs=rngs)) for setting in dict.fromkeys(settings)}
    copies = ((graph, _copied(state)) for graph, state in map(made.__getitem__, settings))
    return modules([nnx.merge(*copy) for copy in copies])


def _copied(state: Any) -> Any:
    """``state`` with variables of its own."""
    return jax.tree.map(lambda leaf: leaf, state)


def traced_once(module: nnx.Module, *args: Any) -> Any:
    """``module(*args)``, traced and lowered once for all modules of one structure: the layers of a deep model."""
    graph, state = nnx.split(module)
    return _merged(graph, state, args)


@functools.partial(jax.jit, static_argnums=0)
def _merged(graph: Any, state: Any, args: tuple[Any, ...]) -> Any:
    return nnx.merge(graph, state)(*args)


def functional(module: Callable[..., Any], config: Any) -> Functional:
    """The pure functions of ``module(config, rngs=...)``. Its only variables must be parameters.

    >>> from m2ml.models import CNN, CNNConfig, functional
    >>> model = functional(CNN, CNNConfig(height=8, width=8))
    >>> sorted(model.shapes())
    ['convolutions', 'head', 'hidden']
    """
    return Functional(lambda rngs: module(config, rngs=rngs))


def parameter_count(params: Params) -> int:
    """How many numbers ``params`` holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
