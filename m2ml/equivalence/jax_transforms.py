"""What a case of JAX becomes under ``vmap`` and under differentiation: a function and its arguments."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import compat

Array = np.ndarray[Any, Any]

Transform = Literal["none", "vmap", "grad"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)

#: A function of arrays and the arguments it is called with.
Call = tuple[Callable[..., Any], Sequence[Any]]

#: Copies of each argument in a batch.
BATCH = 3


class NotTransformable(Exception):
    """JAX itself has no such transformation of a case; ``str()`` says why."""


def batched(fn: Callable[..., Any], args: Sequence[Any], *, fixed_integers: bool) -> Call:
    """``vmap`` of ``fn`` over `BATCH` different copies of every argument, along a new leading axis.

    ``fixed_integers`` repeats integers as they are: indices that are promised to be unique or sorted must stay so.
    """
    if not jax.tree.leaves(tuple(args)):
        raise NotTransformable("no argument")
    stacked = [jax.tree.map(lambda leaf: _stack(leaf, fixed_integers), arg) for arg in args]
    return _checked(jax.vmap(fn), stacked, "vmap")


def differentiated(fn: Callable[..., Any], args: Sequence[Any], outputs: Sequence[int], *, alike: bool) -> Call:
    """The pullback of fixed cotangents of ``outputs``, or the pushforward of fixed tangents where there is no pullback.

    The (co)tangents are trailing arguments of the function, one per floating leaf. ``alike`` makes them all one, for
    results whose order is not determined.
    """
    leaves, tree = jax.tree.flatten(tuple(args))
    results = jax.tree.leaves(jax.eval_shape(fn, *args))
    floats = [i for i, leaf in enumerate(leaves) if _floating(leaf)]
    chosen = [i for i in outputs if _floating(results[i])]
    if not floats or not chosen:
        raise NotTransformable(f"no floating {'result' if floats else 'argument'}")

    def split(*inputs: Any) -> tuple[Callable[..., Any], list[Any], Sequence[Any]]:
        def of_floats(*moving: Any) -> list[Any]:
            full = list(inputs[: len(leaves)])
            for i, value in zip(floats, moving, strict=True):
                full[i] = value
            outs = jax.tree.leaves(fn(*jax.tree.unflatten(tree, full)))
            return [outs[i] for i in chosen]

        return of_floats, [inputs[i] for i in floats], inputs[len(leaves) :]

    def pullback(*inputs: Any) -> Any:
        of_floats, at, cotangents = split(*inputs)
        return jax.vjp(of_floats, *at)[1](list(cotangents))

    def pushforward(*inputs: Any) -> Any:
        of_floats, at, tangents = split(*inputs)
        return jax.jvp(of_floats, at, list(tangents))[1]

    try:
        return _checked(pullback, [*leaves, *_directions([results[i] for i in chosen], alike)], "vjp")
    except NotTransformable as reverse:
        try:
            return _checked(pushforward, [*leaves, *_directions([leaves[i] for i in floats], alike)], "jvp")
        except NotTransformable:
            raise reverse from None


def _checked(fn: Callable[..., Any], args: Sequence[Any], what: str) -> Call:
    try:
        jax.eval_shape(fn, *args)
    except Exception as error:
        said = textwrap.shorten(str(error).split("\n")[0], 160, placeholder=" ...")
        raise NotTransformable(f"{what}: {type(error).__name__}: {said}") from error
    return fn, args


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _floating(leaf: Any) -> bool:
    return compat.is_inexact(_dtype(leaf)) if not compat.is_key(_dtype(leaf)) else False


def _directions(leaves: Sequence[Any], alike: bool) -> list[Array]:
    """One fixed direction per leaf, of numbers between 1/2 and 1 with either sign."""
    generator = np.random.default_rng(0)
    return [_direction(generator, np.shape(leaf), _dtype(leaf), alike) for leaf in leaves]


def _direction(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any, alike: bool) -> Array:
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    draw = generator.uniform(-1, 1, shape)
    values = draw / 2 + np.copysign(0.5, draw)
    if dtype.kind == "c":
        values = values + 1j * generator.uniform(-1, 1, shape)
    return np.asarray(np.ones(shape) if alike else values, dtype)


def _stack(leaf: Any, fixed_integers: bool) -> Any:
    if compat.is_key(_dtype(leaf)):
        data = _stack(np.asarray(jax.random.key_data(leaf)), fixed_integers)
        return jax.random.wrap_key_data(data, impl=compat.key_impl_name(_dtype(leaf)))
    array = np.asarray(leaf, jax.dtypes.canonicalize_dtype(_dtype(leaf)))
    return np.stack([_copy(array, i, fixed_integers) for i in range(BATCH)])


def _copy(array: Array, i: int, fixed_integers: bool) -> Array:
    """Copy ``i``, another number of the same kind: definite matrices stay definite, valid indices valid.

    Floats are scaled by ``1 - i / 8``, integers move ``i`` steps towards zero, booleans flip in every other copy.
    """
    if array.dtype == bool:
        return np.asarray(array ^ bool(i % 2))
    if compat.is_inexact(array.dtype):
        wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        return np.asarray((wide * (1 - i / 8)).astype(array.dtype))
    if fixed_integers:
        return array
    towards_zero = np.where(array > 0, array - np.minimum(array, i), array + np.minimum(-array, i))
    return np.asarray(towards_zero.astype(array.dtype))
