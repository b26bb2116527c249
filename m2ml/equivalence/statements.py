"""The statements of random programs: cases of primitives, and blocks of them under transformations and in loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from m2ml.precision import is_complex, is_float

Values = Sequence[Any]
#: ``body(values, inputs)``: the statements of a block on the values it reads and the inputs of the program.
Body = Callable[[Values, Values], list[Any]]


@dataclass(frozen=True)
class Own:
    """An array of the statement's own: input ``index`` of the program."""

    index: int

    def get(self, values: Values, inputs: Values) -> Any:
        return inputs[self.index]


@dataclass(frozen=True)
class Read:
    """Value ``index``, converted and reshaped.

    ``turned`` reverses its elements, ``bounded`` keeps floats below one, ``finite`` makes NaN, infinities
    and -0 zero.
    """

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    turned: bool
    bounded: bool
    finite: bool = False

    def get(self, values: Values, inputs: Values) -> Any:
        x = converted(values[self.index], self.dtype)
        if self.bounded and is_float(self.dtype):
            x = lax.div(x, lax.add(lax.abs(x), np.ones((), self.dtype)))
        if self.finite and jnp.issubdtype(self.dtype, np.inexact):
            zero = np.zeros((), self.dtype)
            x = jnp.where(jnp.isfinite(x) & (x != zero), x, zero)
        return reshaped(x, self.shape, turned=self.turned)


@dataclass(frozen=True)
class Mixed:
    """An array of the statement's own whose elements an earlier value moves by less than a hundredth."""

    own: Own
    read: Read

    def get(self, values: Values, inputs: Values) -> Any:
        x, moved = self.own.get(values, inputs), self.read.get(values, inputs)
        one = np.ones((), self.read.dtype)
        return lax.mul(x, lax.add(one, lax.mul(np.asarray(2**-7, one.dtype), lax.sin(moved))))


Argument = Own | Read | Mixed


def converted(x: Any, dtype: Any) -> Any:
    """``x`` in ``dtype``: complex numbers lose their imaginary part, booleans say what is not zero."""
    if x.dtype == dtype:
        return x
    if dtype == np.bool_:
        return lax.ne(x, np.zeros((), x.dtype))
    x = lax.real(x) if is_complex(x.dtype) and not is_complex(dtype) else x
    return lax.convert_element_type(x, dtype)


def reshaped(x: Any, shape: Sequence[int], *, turned: bool = False) -> Any:
    """The last elements of ``x`` in ``shape``; repeated where there are too few, zeros where there are none."""
    size, flat = math.prod(shape), lax.reshape(x, (x.size,)) if x.ndim != 1 else x
    flat = lax.rev(flat, (0,)) if turned else flat
    if not x.size and size:
        flat = lax.pad(flat, np.zeros((), x.dtype), [(0, size, 0)])
    elif x.size < size:
        rows = -(-size // x.size)
        flat = lax.reshape(lax.broadcast_in_dim(flat, (rows, x.size), (1,)), (rows * x.size,))
    flat = lax.slice(flat, (flat.size - size,), (flat.size,)) if flat.size != size else flat
    return lax.reshape(flat, shape) if tuple(flat.shape) != tuple(shape) else flat


@dataclass(frozen=True)
class Call:
    """A case of the primitive ``name``. ``avals`` are the types of its results."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...] = field(default=())

    def run(self, values: Values, inputs: Values) -> list[Any]:
        return self._apply(*(a.get(values, inputs) for a in self.arguments))

    def _apply(self, *arguments: Any) -> list[Any]:
        outs = jax.tree.leaves(self.function(*arguments))
        return UNIQUE[self.name](outs) if self.name in UNIQUE else outs

    def typed(self, arguments: Values) -> Call:
        """The statement with the types of its results, from arrays of the types of its arguments."""
        return Call(self.name, self.function, self.arguments, _types(self._apply, *arguments))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Block:
    """Bodies under a transformation or in a loop of ``count`` iterations."""

    kind: str
    bodies: tuple[Body, ...]
    arguments: tuple[Read, ...]
    count: int
    avals: tuple[jax.ShapeDtypeStruct, ...] = field(default=())

    def run(self, values: Values, inputs: Values) -> list[Any]:
        def closed(body: Body) -> Callable[..., list[Any]]:
            return lambda *xs: body(xs, inputs)

        bodies = [closed(body) for body in self.bodies]
        return BLOCKS[self.kind](bodies, [a.get(values, inputs) for a in self.arguments], self.count)

    def typed(self, values: Values, inputs: Values) -> Block:
        """The statement with the types of its results. Raises what JAX raises when it cannot transform the body."""
        avals = _types(self.run, list(values), list(inputs))
        return Block(self.kind, self.bodies, self.arguments, self.count, avals)

    def __str__(self) -> str:
        return f"{self.kind}({' | '.join(getattr(body, '__name__', '') for body in self.bodies)})"


Statement = Call | Block


def _types(function: Callable[..., list[Any]], *arguments: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    outs = jax.eval_shape(function, *arguments)
    return tuple(jax.ShapeDtypeStruct(y.shape, y.dtype) for y in outs)


# Results that are unique ------------------------------------------------------------------------------


def _adjoint(x: Any) -> Any:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def _diagonal(x: Any) -> Any:
    return jnp.abs(jnp.diagonal(x, axis1=-2, axis2=-1))


def _svd(outs: list[Any]) -> list[Any]:
    if len(outs) == 1:
        return outs
    u, s, v = outs
    rank = s.shape[-1]
    return [s, (u[..., :rank] * s[..., None, :].astype(u.dtype)) @ v[..., :rank, :]]


#: Factorisations that are unique only up to signs, phases or order: something of them that is unique.
UNIQUE: Mapping[str, Callable[[list[Any]], list[Any]]] = {
    "eig": lambda outs: [jnp.sum(outs[0], -1), jnp.sum(outs[0] ** 2, -1)],
    "eigh": lambda outs: [outs[1], (outs[0] * outs[1][..., None, :].astype(outs[0].dtype)) @ _adjoint(outs[0])],
    "hessenberg": lambda outs: [jnp.trace(outs[0], axis1=-2, axis2=-1)],
    "qr": lambda outs: [outs[0] @ outs[1], _diagonal(outs[1])],
    "schur": lambda outs: [outs[1] @ outs[0] @ _adjoint(outs[1])],
    "svd": _svd,
    "tridiagonal": lambda outs: [jnp.sum(outs[1], -1), jnp.sum(outs[2] ** 2, -1)],
}


# Transformations and loops ----------------------------------------------------------------------------

Bodies = Sequence[Callable[..., list[Any]]]


def _floats(bodies: Bodies, xs: Values) -> tuple[Callable[..., list[Any]], list[Any]]:
    """The body as a function from its float arguments to its float results, and those arguments."""
    places = [i for i, x in enumerate(xs) if is_float(x.dtype)]

    def function(*moving: Any) -> list[Any]:
        given = dict(zip(places, moving, strict=True))
        return [y for y in bodies[0](*(given.get(i, x) for i, x in enumerate(xs))) if is_float(y.dtype)]

    if not places:
        raise TypeError("there is nothing to differentiate by")
    return function, [xs[i] for i in places]


def _grad(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    """The gradient of half the sum of the squares of the results."""
    function, moving = _floats(bodies, xs)
    outs, pull = jax.vjp(function, *moving)
    if not outs:
        raise TypeError("there is nothing to differentiate")
    return list(pull(outs))


def _jvp(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    function, moving = _floats(bodies, xs)
    outs, tangents = jax.jvp(function, moving, [lax.sin(x) for x in moving])
    if not outs:
        raise TypeError("there is nothing to differentiate")
    return [*outs, *tangents]


def _vmap(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    """Over the first argument and its reverse; over the others too when ``count`` is odd."""

    def both(x: Any) -> Any:
        return jnp.stack([x, lax.rev(x, tuple(range(x.ndim)))])

    axes = [0 if i == 0 or count % 2 else None for i in range(len(xs))]
    mapped = [x if axis is None else both(x) for x, axis in zip(xs, axes, strict=True)]
    return list(jax.vmap(bodies[0], axes)(*mapped))


def _checkpoint(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    return list(jax.checkpoint(bodies[0])(*xs))


def _carried(y: Any, like: Any) -> Any:
    """What a body gives, as its next argument."""
    return reshaped(converted(y, like.dtype), like.shape)


def _scan(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    """The first result is carried, the others are stacked; forwards or, when ``count`` is odd, backwards."""

    def step(carry: Any, _: Any) -> tuple[Any, list[Any]]:
        first, *rest = bodies[0](carry, *xs[1:])
        return _carried(first, xs[0]), rest

    last, stacked = lax.scan(step, xs[0], None, length=count, reverse=bool(count % 2))
    return [last, *stacked]


def _map(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    if not xs[0].ndim:
        raise TypeError("there is no axis to map over")
    return list(lax.map(lambda row: bodies[0](jnp.broadcast_to(row, xs[0].shape), *xs[1:]), xs[0]))


def _fori(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    return [lax.fori_loop(0, count, lambda _, carry: _carried(bodies[0](carry, *xs[1:])[0], xs[0]), xs[0])]


def _while(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    """At most ``count`` iterations, fewer when the carry's last element grows large: the data decide."""

    def going(state: Any) -> Any:
        size = converted(reshaped(state[1], ()), np.dtype(np.float32))
        return (state[0] < count) & (lax.abs(size) < 100.0)

    def step(state: Any) -> Any:
        return state[0] + 1, _carried(bodies[0](state[1], *xs[1:])[0], xs[0])

    return list(lax.while_loop(going, step, (jnp.int32(0), xs[0])))


def _switch(bodies: Bodies, xs: Values, count: int) -> list[Any]:
    """The last element of the first argument chooses, out of range too."""
    avals = jax.eval_shape(bodies[0], *xs)

    def like_first(body: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def branch(*xs: Any) -> list[Any]:
            outs = body(*xs)
            return [_carried(outs[i % len(outs)], aval) for i, aval in enumerate(avals)]

        return branch

    index = converted(reshaped(xs[0], ()), np.dtype(np.int32))
    return list(lax.switch(index, [like_first(body) for body in bodies], *xs))


#: Kind of block -> ``function(bodies, arguments, count)``.
BLOCKS: Mapping[str, Callable[[Bodies, Values, int], list[Any]]] = {
    "checkpoint": _checkpoint,
    "cond": _switch,
    "fori_loop": _fori,
    "grad": _grad,
    "jvp": _jvp,
    "map": _map,
    "scan": _scan,
    "switch": _switch,
    "vmap": _vmap,
    "while_loop": _while,
}
