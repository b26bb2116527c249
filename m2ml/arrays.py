"""Leaves of any origin: what they are, and how they cross from one backend to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from m2ml import compat
from m2ml.backend import Backend
from m2ml.interpreter import short
from m2ml.plugins import registry


@dataclass(frozen=True, slots=True, eq=False)
class KeyArray:
    """Typed random keys held by a backend: ``data`` is a native uint32 array with the key's trailing axes.

    A JAX program sees ``shape`` and ``dtype``, those of the keys. `m2ml.get` gives a JAX key array.
    """

    data: Any
    shape: tuple[int, ...]
    dtype: Any


_SCALARS = (bool, int, float, complex)


def aval_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The abstract value JAX would give ``leaf``. Raises TypeError when it is not an array or number."""
    if isinstance(leaf, _SCALARS):
        dtype = jax.dtypes.canonicalize_dtype(np.result_type(type(leaf)))
        return jax.ShapeDtypeStruct((), dtype, weak_type=not isinstance(leaf, bool))
    if isinstance(leaf, jax.Array | KeyArray):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic):
        return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
    owner = owner_of(leaf)
    if owner is None:
        raise TypeError(f"{type(leaf).__name__} is not an array or a number")
    host_dtype = getattr(owner, "dtype_of", lambda x: owner.to_host(x).dtype)(leaf)
    return jax.ShapeDtypeStruct(tuple(leaf.shape), host_dtype)


def owner_of(leaf: Any) -> Backend | None:
    """The backend whose array ``leaf`` is; backends not asked for yet are created only for a leaf nobody knows."""
    for backends in (registry.loaded, lambda: registry.available().values()):
        owner = next((b for b in backends() if b.owns(leaf)), None)
        if owner is not None:
            return owner
    return None


def is_foreign(leaf: Any) -> bool:
    """Whether JAX does not know ``leaf`` but some backend does."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.core.Tracer | int | float | complex):
        return False
    return isinstance(leaf, KeyArray) or owner_of(leaf) is not None


def to_host(leaf: Any) -> Any:
    """``leaf`` as a NumPy array, or as a JAX key array if it holds random keys."""
    if isinstance(leaf, KeyArray):
        return jax.random.wrap_key_data(to_host(leaf.data), impl=compat.key_impl_name(leaf.dtype))
    if isinstance(leaf, np.ndarray | np.generic | int | float | complex):
        return np.asarray(leaf)
    if isinstance(leaf, jax.Array):
        return leaf if compat.is_key(leaf.dtype) else np.asarray(leaf)
    owner = owner_of(leaf)
    if owner is None:
        raise TypeError(f"{type(leaf).__name__} is not an array or a number")
    return owner.to_host(leaf)


def to_native(leaf: Any, backend: Backend) -> Any:
    """``leaf`` as an array of ``backend`` in the dtype JAX would give it; keys as the arrays that hold them."""
    if isinstance(leaf, KeyArray):
        return to_native(leaf.data, backend)
    if backend.owns(leaf):
        return leaf if not (isinstance(leaf, jax.Array) and compat.is_key(leaf.dtype)) else jax.random.key_data(leaf)
    host = to_host(leaf)
    if isinstance(host, jax.Array):
        host = np.asarray(jax.random.key_data(host))
    if isinstance(leaf, _SCALARS):
        host = np.asarray(leaf, aval_of(leaf).dtype)
    return backend.from_host(np.asarray(host, jax.dtypes.canonicalize_dtype(host.dtype)))


def from_native(array: Any, aval: Any) -> Any:
    """A native output as its program declares it: keys are wrapped, everything else is the array itself."""
    if not compat.is_key(aval.dtype):
        return array
    if isinstance(array, jax.Array):
        return jax.random.wrap_key_data(array, impl=compat.key_impl_name(aval.dtype))
    return KeyArray(array, tuple(aval.shape), aval.dtype)


def put(tree: Any, backend: str) -> Any:
    """Move every array of ``tree`` to ``backend``. Typed random keys become `KeyArray`, or stay JAX's own on XLA.

    >>> import m2ml, numpy as np
    >>> m2ml.put({"w": np.ones(2, "float32")}, "reference")["w"].dtype
    dtype('float32')
    """
    engine = registry.get(backend)

    def move(leaf: Any) -> Any:
        return from_native(to_native(leaf, engine), aval_of(leaf))

    return jax.tree.map(move, tree)


def get(tree: Any) -> Any:
    """Every array of ``tree`` as NumPy (bfloat16 and its kin through ml_dtypes); typed random keys as JAX keys.

    Waits for the arrays.
    """
    return jax.tree.map(to_host, tree)


def wait(tree: Any) -> Any:
    """Return ``tree`` once every array in it has been computed."""
    groups: dict[str, list[Any]] = {}
    for leaf in jax.tree.leaves(tree):
        array = leaf.data if isinstance(leaf, KeyArray) else leaf
        owner = owner_of(array)
        if owner is not None:
            groups.setdefault(owner.name, []).append(array)
        elif isinstance(array, jax.Array):
            array.block_until_ready()
    for name, arrays in groups.items():
        registry.get(name).wait(arrays)
    return tree


def check_leaves(paths_and_leaves: Sequence[tuple[Any, Any]], name: str) -> list[jax.ShapeDtypeStruct]:
    """Avals of the leaves of a call; one that is not an array raises TypeError naming its path."""
    avals = []
    for path, leaf in paths_and_leaves:
        try:
            avals.append(aval_of(leaf))
        except TypeError as error:
            where = jax.tree_util.keystr(path)
            raise TypeError(
                f"{name} got a {type(leaf).__name__} at argument {where}, where an array or a number is needed; "
                "name the argument in static_argnames if it is meant to be constant"
            ) from error
    return avals


def describe(avals: Sequence[Any], most: int = 8) -> str:
    """``(float32[2], int32[])``; of more than ``most`` only the first are written out."""
    words = [short(compat.physical_aval(a)) for a in avals[:most]]
    rest = [f"{len(avals) - most} more"] if len(avals) > most else []
    return f"({', '.join(words + rest)})"
