"""Cases of reductions along axes and over windows, cumulative ones, sorting and searching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    REAL,
    Draw,
    array,
    coin,
    dtype_among,
    dtype_of,
    either_nan,
    near_ties,
    number,
    one_of,
    shape_of,
)

Shape = tuple[int, ...]


def _axes(draw: Draw, rank: int) -> tuple[int, ...]:
    if coin(draw):
        return (one_of(draw, *range(rank)),)
    return tuple(draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1)))


def _terms(name: str) -> dict[str, Any]:
    """Sums and products that stay within every float dtype in any order, unless a term is infinite."""
    if name.endswith("prod"):
        return {"extreme": False, "scales": (1.0,), "low": None, "high": None}
    return {"extreme": not name.endswith("sum"), "scales": (1.0, 1e-3, 20.0)}


def reducer(name: str) -> Callable[..., Any]:
    """The public function that binds a reduction, or JAX's NumPy one where this JAX has none in lax."""
    numpy: dict[str, Callable[..., Any]] = {
        "sum": jnp.sum,
        "prod": jnp.prod,
        "max": jnp.max,
        "min": jnp.min,
        "and": jnp.all,
        "or": jnp.any,
    }
    kind = name.removeprefix("reduce_")
    if hasattr(lax, name):
        return getattr(lax, name)
    if kind not in numpy:
        return lambda x, axes: lax.reduce(x, np.zeros((), x.dtype), lax.bitwise_xor, axes)
    if kind == "sum":
        return lambda x, axes: jnp.sum(x, axes, dtype=x.dtype, promote_integers=False)
    if kind == "prod":
        return lambda x, axes: jnp.prod(x, axes, dtype=x.dtype, promote_integers=False)
    return lambda x, axes: numpy[kind](x, axes)


@covers("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
def reduce_numbers(draw: Draw, name: str) -> Case:
    ordered = name in ("reduce_max", "reduce_min")
    dtype = dtype_among(draw, *REAL, *(() if ordered else COMPLEX))
    finite = dtype == "complex64" or coin(draw)
    x = array(draw, shape_of(draw, 1), dtype, finite=finite, **_terms(name))
    if not finite and x.size and dtype in FLOATS:  # in a small array the pool of special numbers has seldom placed one
        x.flat[number(draw) % x.size] = one_of(draw, np.nan, np.inf, -np.inf)
    axes = _axes(draw, x.ndim)
    axes = tuple(d for d in axes if x.shape[d]) if ordered and not hasattr(lax, name) else axes
    return lambda x: reducer(name)(x, axes), [x if axes else np.ones((3,), x.dtype)]


@covers("reduce_and", "reduce_or", "reduce_xor")
def reduce_bits(draw: Draw, name: str) -> Case:
    dtypes = ("bool",) if not hasattr(lax, name) else ("bool", *INTEGERS)
    x = array(draw, shape_of(draw, 1), dtype_among(draw, *dtypes))
    axes = _axes(draw, x.ndim)
    return lambda x: reducer(name)(x, axes), [x]


def _xnor(a: Any, b: Any) -> Any:
    return lax.bitwise_xor(a, ~b)


@covers("reduce")
def reduce_any(draw: Draw, name: str) -> Case:
    """A body that lax.reduce knows no name for; with two operands, an argmax.

    XLA leaves open how often the initial value enters, so it is the identity of the body.
    """
    shape = shape_of(draw, 1)
    axes = _axes(draw, len(shape))
    if coin(draw):
        x = array(draw, shape, "int32")
        return lambda x: lax.reduce(x, np.int32(-1), _xnor, axes), [x]

    def best(a: Any, b: Any) -> Any:
        keep = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        return lax.select(keep, a[0], b[0]), lax.select(keep, a[1], b[1])  # XLA dies of unread calls of jnp.where

    x, i = array(draw, shape, "int32"), np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    return lambda x, i: lax.reduce((x, i), (np.int32(-(2**31)), np.int32(2**31 - 1)), best, axes), [x, i]


@covers("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(draw: Draw, name: str) -> Case:
    dtypes = FLOATS if name == "cumlogsumexp" else REAL
    finite = name != "cumlogsumexp" and coin(draw)
    x = array(draw, shape_of(draw, 1), dtype_among(draw, *dtypes), finite=finite, **_terms(name))
    axis, reverse = draw(st.integers(0, x.ndim - 1)), coin(draw)
    return lambda x: public(name)(x, axis=axis, reverse=reverse), [x]


@covers("argmax", "argmin")
def arg_extreme(draw: Draw, name: str) -> Case:
    x = near_ties(draw, shape_of(draw, 1, sizes=(1, 2, 3, 7)), dtype_among(draw, *REAL, "bool"))
    axis, index = draw(st.integers(0, x.ndim - 1)), one_of(draw, np.int32, np.uint32, np.int8)
    return lambda x: public(name)(x, axis, index), [x]


@covers("sort")
def sort(draw: Draw, name: str) -> Case:
    shape, count = shape_of(draw, 1), one_of(draw, *range(1, 4))
    keys = draw(st.integers(1, count))
    arrays = [array(draw, shape, dtype_among(draw, *REAL, "bool"), scales=(1.0, 1e-3)) for _ in range(count)]
    axis = draw(st.integers(0, len(shape) - 1))
    arrays = [np.round(x) if x.dtype == np.float32 and i + 1 < keys else x for i, x in enumerate(arrays)]  # ties
    return lambda *xs: lax.sort(xs, dimension=axis, num_keys=keys, is_stable=True), arrays


@covers("top_k")
def top_k(draw: Draw, name: str) -> Case:
    """By the total order of the bits, as XLA compares: -NaN is the smallest, NaN the largest, -0 is less than 0."""
    x = either_nan(draw, near_ties(draw, shape_of(draw, 1, sizes=(1, 2, 5, 7)), dtype_among(draw, *REAL)))
    k = one_of(draw, *range(x.shape[-1], -1, -1))
    return lambda x: lax.top_k(x, k), [x]


@covers("approx_top_k")
def approx_top_k(draw: Draw, name: str) -> Case:
    """On engines without an approximation the result is exact, as on XLA's CPU."""
    shape = shape_of(draw, 1, 2, sizes=(1, 2, 5, 7))
    x = np.random.default_rng(draw(st.integers(0, 99))).permuted(np.arange(np.prod(shape))).reshape(shape)
    k, function = draw(st.integers(1, shape[-1])), one_of(draw, lax.approx_max_k, lax.approx_min_k)
    return lambda x: function(x, k), [x.astype(np.float32)]


# windows --------------------------------------------------------------------------------------------


def windows(draw: Draw, rank: int, *, dilated: bool = True) -> tuple[Shape, Shape, list[tuple[int, int]], Shape, Shape]:
    """Window sizes, strides, padding and dilations of the base and of the window for ``rank`` axes."""
    sizes = tuple(one_of(draw, *range(1, 4)) for _ in range(rank))
    strides = tuple(one_of(draw, *range(1, 4)) for _ in range(rank))
    padding = [(draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))) for n in sizes]
    dilations = [tuple(draw(st.integers(1, 3 if dilated else 1)) for _ in range(rank)) for _ in range(2)]
    return sizes, strides, padding, dilations[0], dilations[1]


@covers("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def reduce_window_named(draw: Draw, name: str) -> Case:
    kind = name.removeprefix("reduce_window_")
    dtype = dtype_among(draw, *REAL, *(COMPLEX if kind == "sum" else ()))
    x = array(draw, shape_of(draw, 1, 4, (0, 1, 4, 5, 6)), dtype, finite=kind == "sum" and coin(draw))
    x = x if dtype != "complex64" else array(draw, x.shape, dtype, finite=True)
    floating = dtype in FLOATS
    init = {"sum": 0, "max": -np.inf, "min": np.inf}[kind]
    if kind != "sum" and not floating:
        init = getattr(np.iinfo(dtype), "min" if kind == "max" else "max")
    sizes, strides, padding, base, window = windows(draw, x.ndim)
    body = {"sum": lax.add, "max": lax.max, "min": lax.min}[kind]
    return lambda x: lax.reduce_window(x, x.dtype.type(init), body, sizes, strides, padding, base, window), [x]


@covers("reduce_window")
def reduce_window_any(draw: Draw, name: str) -> Case:
    x = array(draw, shape_of(draw, 1, 3, (0, 1, 4, 5, 6)), one_of(draw, "int32", "uint8"))
    sizes, strides, padding, base, window = windows(draw, x.ndim)
    body, init = one_of(draw, (lax.mul, 1), (lax.bitwise_xor, 0), (lax.max, 3))
    return lambda x: lax.reduce_window(x, x.dtype.type(init), body, sizes, strides, padding, base, window), [x]


@covers("select_and_scatter_add")
def pooling_gradient(draw: Draw, name: str) -> Case:
    """What reverse mode makes of max pooling; without ties, where engines may choose differently."""
    shape = shape_of(draw, 1, 3, (1, 4, 5, 6))
    x = np.random.default_rng(draw(st.integers(0, 99))).permuted(np.arange(np.prod(shape))).reshape(shape)
    sizes, strides, padding, _, _ = windows(draw, len(shape), dilated=False)
    body, init = one_of(draw, (lax.max, -np.inf), (lax.min, np.inf))
    dtype = dtype_among(draw, *FLOATS)

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, x.dtype.type(init), body, sizes, strides, padding)

    out = jax.eval_shape(pool, x.astype(np.float32)).shape
    return lambda x, g: jax.vjp(pool, x)[1](g)[0], [
        x.astype(np.float32).astype(dtype_of(dtype)),
        array(draw, out, dtype, finite=True),
    ]


@covers("select_and_gather_add")
def pooling_tangent(draw: Draw, name: str) -> Case:
    shape = shape_of(draw, 1, 3, (1, 4, 5, 6))
    x = np.random.default_rng(draw(st.integers(0, 99))).permuted(np.arange(np.prod(shape))).reshape(shape)
    sizes, strides, padding, _, _ = windows(draw, len(shape), dilated=False)
    body, init = one_of(draw, (lax.max, -np.inf), (lax.min, np.inf))

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, x.dtype.type(init), body, sizes, strides, padding)

    return lambda x, t: jax.jvp(pool, (x,), (t,))[1], [x.astype(np.float32), array(draw, shape, "float32", finite=True)]
