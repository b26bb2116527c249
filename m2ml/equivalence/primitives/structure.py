"""Cases of the primitives that make, move and join arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import (
    EVERY,
    NUMBERS,
    SIZES,
    Draw,
    array,
    coin,
    dtype_among,
    dtype_of,
    one_of,
    shape_of,
)


def _operand(draw: Draw, least: int = 0, sizes: tuple[int, ...] = SIZES, copy: int = 0) -> np.ndarray:
    return array(draw, shape_of(draw, least, sizes=sizes), dtype_among(draw, *EVERY), copy=copy)


def _axis(draw: Draw, x: np.ndarray) -> int:
    return draw(st.integers(0, x.ndim - 1))


@covers("broadcast_in_dim")
def broadcast_in_dim(draw: Draw, name: str) -> Case:
    shape = shape_of(draw)
    kept = [d for d in range(len(shape)) if coin(draw)]
    x = array(draw, [one_of(draw, shape[d], shape[d], 1) for d in kept], dtype_among(draw, *EVERY))
    return lambda x: lax.broadcast_in_dim(x, shape, kept), [x]


@covers("reshape")
def reshape(draw: Draw, name: str) -> Case:
    x = _operand(draw)
    sizes = [(*x.shape, 1, 1), (x.size, 1), (1, 1, x.size), (*x.shape[::-1], 1), (1, *x.shape, 1)]
    target = one_of(draw, *sizes)
    order = tuple(draw(st.permutations(range(x.ndim)))) if coin(draw) else None
    return lambda x: lax.reshape(x, target, order), [x]


@covers("squeeze")
def squeeze(draw: Draw, name: str) -> Case:
    x = _operand(draw, sizes=(0, 1, 1, 3))
    axes = [d for d in range(x.ndim) if x.shape[d] == 1 and coin(draw)]
    x = x if axes else x[None]
    return lambda x: lax.squeeze(x, axes or [0]), [x]


@covers("transpose")
def transpose(draw: Draw, name: str) -> Case:
    x = _operand(draw, 2)
    order = draw(st.permutations(range(x.ndim)).filter(lambda p: list(p) != sorted(p)))
    return lambda x: lax.transpose(x, order), [x]


@covers("rev")
def rev(draw: Draw, name: str) -> Case:
    x = _operand(draw, 1)
    axes = draw(st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1))
    return lambda x: lax.rev(x, axes), [x]


@covers("slice")
def slices(draw: Draw, name: str) -> Case:
    x = _operand(draw, 1)
    begin = [draw(st.integers(0, n // 2)) for n in x.shape]
    end = [draw(st.integers(b, n)) if coin(draw) else n for b, n in zip(begin, x.shape, strict=True)]
    strides = [one_of(draw, *range(1, 5)) for _ in x.shape] if coin(draw) else None
    return lambda x: lax.slice(x, begin, end, strides), [x]


@covers("pad")
def pad(draw: Draw, name: str) -> Case:
    x = _operand(draw, 1)
    config = []
    for n in x.shape:
        interior = one_of(draw, *range(0, 4))
        length = max(n + (n - 1) * interior, 0)
        low = draw(st.integers(-min(length, 4), 4))
        config.append((low, draw(st.integers(-min(max(length + low, 0), 4), 4)), interior))
    return lambda x, v: lax.pad(x, v, config), [x, array(draw, (), x.dtype.name)]


def _joined(draw: Draw) -> tuple[list[np.ndarray], int]:
    first = _operand(draw, 1)
    axis, count = _axis(draw, first), one_of(draw, *range(1, 5))
    equal = coin(draw)
    lengths = [first.shape[axis] if equal else one_of(draw, *SIZES) for _ in range(count)]
    shapes = [(*first.shape[:axis], n, *first.shape[axis + 1 :]) for n in lengths]
    return [array(draw, shape, first.dtype.name, copy=i) for i, shape in enumerate(shapes)], axis


@covers("concatenate")
def concatenate(draw: Draw, name: str) -> Case:
    arrays, axis = _joined(draw)
    arrays = arrays if len(arrays) > 1 else arrays * 2
    return lambda *xs: lax.concatenate(xs, axis), arrays


@covers("split")
def split(draw: Draw, name: str) -> Case:
    arrays, axis = _joined(draw)
    sizes = [x.shape[axis] for x in arrays]
    return lambda x: list(public("split")(x, sizes, axis)), [np.concatenate(arrays, axis)]


@covers("stack", "unstack")
def stacking(draw: Draw, name: str) -> Case:
    function, x = public(name), _operand(draw, 1, (0, 1, 2, 3))
    if name == "unstack":
        x = x if min(x.shape) else np.ones((2, 3), x.dtype)
        axis = _axis(draw, x)
        return lambda x: function(x, axis), [x]
    axis, count = draw(st.integers(0, x.ndim)), one_of(draw, *range(1, 4))
    return lambda *xs: function(xs, axis), [array(draw, x.shape, x.dtype.name, copy=i) for i in range(count)]


@covers("tile")
def tile(draw: Draw, name: str) -> Case:
    function, x = public("tile"), _operand(draw, 1, (0, 1, 2, 3))
    repeats = [one_of(draw, 2, 1, 3, 0) for _ in x.shape]
    return lambda x: function(x, repeats), [x]


@covers("iota")
def iota(draw: Draw, name: str) -> Case:
    shape, dtype = shape_of(draw, 1), dtype_of(dtype_among(draw, *NUMBERS))
    axis = draw(st.integers(0, len(shape) - 1))
    return lambda: lax.broadcasted_iota(dtype, shape, axis), []


@covers("optimization_barrier")
def barrier(draw: Draw, name: str) -> Case:
    return lambda *xs: lax.optimization_barrier(xs), [_operand(draw), _operand(draw, copy=1)]


@covers("empty")
def empty(draw: Draw, name: str) -> Case:
    function, shape = public("empty"), shape_of(draw)
    return lambda: function(shape, jnp.int32), []


@covers("pure_callback")
def pure_callback(draw: Draw, name: str) -> Case:
    x = array(draw, (3, 2), "float32")
    return lambda x: jax.pure_callback(np.negative, jax.ShapeDtypeStruct(x.shape, x.dtype), x), [x]


@covers("io_callback")
def io_callback(draw: Draw, name: str) -> Case:
    x = array(draw, (3, 2), "float32")
    call = jax.experimental.io_callback
    return lambda x: call(np.negative, jax.ShapeDtypeStruct(x.shape, x.dtype), x, ordered=False), [x]


@covers("debug_callback", "debug_print")
def debug_callback(draw: Draw, name: str) -> Case:
    def shown(x: Any) -> Any:
        jax.debug.print("{}", x) if name == "debug_print" else jax.debug.callback(lambda x: None, x)
        return lax.neg(x)

    return shown, [array(draw, (2,), "float32")]
