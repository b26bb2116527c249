"""Reductions, positions of extremes, and running reductions along an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from m2ml.interpreter import Code, Equation, apply_rule, evaluate
from m2ml_mlx.rules.conversions import total_order
from m2ml_mlx.rules.table import (
    UNSIGNED,
    cast,
    constant,
    constant_like,
    highest,
    is_bool,
    is_complex,
    is_float,
    lowest,
    mlx_dtype,
    out_dtype,
    rules,
    unsupported,
    wide,
)

Reduce = Callable[[mx.array, Sequence[int]], mx.array]


def reduce_sum(x: mx.array, axes: Sequence[int]) -> mx.array:
    """The sum in the dtype of ``x``: integers wrap, booleans or."""
    if not axes:
        return x
    return mx.any(x, axes) if is_bool(x) else cast(mx.sum(x, axes), x.dtype)


def reduce_prod(x: mx.array, axes: Sequence[int]) -> mx.array:
    """The product in the dtype of ``x``: integers wrap, booleans and."""
    if not axes:
        return x
    return mx.all(x, axes) if is_bool(x) else cast(mx.prod(x, axes), x.dtype)


def reduce_max(x: mx.array, axes: Sequence[int]) -> mx.array:
    return _extreme(x, axes, mx.max)


def reduce_min(x: mx.array, axes: Sequence[int]) -> mx.array:
    return _extreme(x, axes, mx.min)


def identity_of(monoid: str, dtype: mx.Dtype) -> mx.array:
    """The value of ``dtype`` that a monoid of `REDUCTIONS` leaves out of account."""
    if monoid in ("max", "min"):
        return constant((lowest if monoid == "max" else highest)(mx.float32 if dtype == mx.complex64 else dtype), dtype)
    if monoid == "and":
        return constant(True if dtype == mx.bool_ else highest(dtype) if dtype in UNSIGNED.values() else -1, dtype)
    return constant(1 if monoid == "mul" else 0, dtype)


def _extreme(x: mx.array, axes: Sequence[int], pick: Any) -> mx.array:
    return pick(x, axes) if axes else x


def reduce_and(x: mx.array, axes: Sequence[int]) -> mx.array:
    return mx.all(x, axes) if is_bool(x) else _fold(x, axes, "and")


def reduce_or(x: mx.array, axes: Sequence[int]) -> mx.array:
    return mx.any(x, axes) if is_bool(x) else _fold(x, axes, "or")


def reduce_xor(x: mx.array, axes: Sequence[int]) -> mx.array:
    if is_bool(x):
        return mx.bitwise_and(mx.sum(x, axes), 1).astype(mx.bool_)
    return _fold(x, axes, "xor")


def _fold(x: mx.array, axes: Sequence[int], monoid: str) -> mx.array:
    """Combine halves until one element is left: for monoids that MLX has no reduction for."""
    for axis in axes:
        while (n := x.shape[axis]) > 1:
            low, high, *rest = mx.split(x, [n // 2, n // 2 * 2], axis=axis)
            x = combine(monoid, low, high)
            x = mx.concatenate([x, *rest], axis=axis) if n % 2 else x
    return mx.squeeze(x, list(axes))


def _of_something(monoid: str, function: Reduce) -> Reduce:
    """``function`` on arrays that hold something; MLX 0.32 can wait for ever for a reduction of an empty one."""

    def reduce(x: mx.array, axes: Sequence[int]) -> mx.array:
        if x.size:
            return function(x, axes)
        return mx.broadcast_to(identity_of(monoid, x.dtype), [n for i, n in enumerate(x.shape) if i not in axes])

    return reduce


#: Monoid (the primitive that combines two elements) -> its reduction over axes.
REDUCTIONS: dict[str, Reduce] = {
    monoid: _of_something(monoid, function)
    for monoid, function in {
        "add": reduce_sum,
        "mul": reduce_prod,
        "max": reduce_max,
        "min": reduce_min,
        "and": reduce_and,
        "or": reduce_or,
        "xor": reduce_xor,
    }.items()
}
_COMBINE: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "add": mx.add,
    "mul": mx.multiply,
    "max": mx.maximum,
    "min": mx.minimum,
    "and": mx.bitwise_and,
    "or": mx.bitwise_or,
    "xor": mx.bitwise_xor,
}
_NAMES = {"add": "sum", "mul": "prod"}


def _reduction(function: Reduce) -> Callable[[Equation, mx.array], mx.array]:
    return lambda equation, x: function(x, list(equation.params["axes"]))


for _monoid, _function in REDUCTIONS.items():
    rules.define(f"reduce_{_NAMES.get(_monoid, _monoid)}")(_reduction(_function))


def monoid_of(body: Code) -> str | None:
    """The primitive that ``body`` applies to its two arguments, if it does just that with one of `REDUCTIONS`."""
    if len(body.steps) != 1 or len(body.outputs) != 1 or len(body.inputs) != 2:
        return None
    step = body.steps[0]
    known = step.equation.name in REDUCTIONS and sorted(step.inputs) == sorted(body.inputs)
    return step.equation.name if known and step.outputs == body.outputs else None


def combine(monoid: str, x: mx.array, y: mx.array) -> mx.array:
    """Two arrays combined by a monoid of `REDUCTIONS`."""
    return _COMBINE[monoid](x, y)


def body_of(equation: Equation) -> Code:
    """The combining function of a generic reduction."""
    return next(value for value in equation.params.values() if isinstance(value, Code))


@rules.define("reduce")
def reduce(equation: Equation, *arrays: mx.array) -> list[mx.array]:
    body, axes = body_of(equation), list(equation.params["dimensions"])
    monoid = monoid_of(body)
    if monoid is not None:
        return [combine(monoid, REDUCTIONS[monoid](arrays[0], axes), arrays[1])]
    half = len(arrays) // 2
    rows, initial = [_merge(x, axes) for x in arrays[:half]], list(arrays[half:])
    while (n := rows[0].shape[0]) > 1:
        rest = [x[n // 2 * 2 :] for x in rows]
        rows = apply_body(equation, [x[: n // 2] for x in rows], [x[n // 2 : n // 2 * 2] for x in rows])
        rows = [mx.concatenate(list(pair)) for pair in zip(rows, rest, strict=True)] if n % 2 else rows
    if rows[0].shape[0] == 0:
        return [mx.broadcast_to(x, equation.shape) for x in initial]
    return apply_body(equation, initial, [mx.squeeze(x, 0) for x in rows])


def _merge(x: mx.array, axes: Sequence[int]) -> mx.array:
    """``x`` with the reduced axes merged into one in front."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    length = math.prod(x.shape[axis] for axis in axes)
    return mx.reshape(mx.transpose(x, [*axes, *kept]), [length, *(x.shape[axis] for axis in kept)])


def apply_body(equation: Equation, left: Sequence[mx.array], right: Sequence[mx.array]) -> list[mx.array]:
    """Combine arrays element by element with a reduction's function, which is written for scalars."""
    body = body_of(equation)
    if not all(_elementwise(step.equation.name) for step in body.steps):
        raise unsupported(equation, "its function is more than arithmetic, comparisons and choices")
    shape = max((x.shape for x in (*left, *right)), key=len)
    outs = evaluate(body, functools.partial(apply_rule, rules), constant_from, [*left, *right])
    return [mx.broadcast_to(x, shape) for x in outs]


def _elementwise(name: str) -> bool:
    """Whether a rule acts on each element alike, whatever shape its equation was written for."""
    families = tuple(f"m2ml_mlx.rules.{family}" for family in ("elementwise", "conversions", "integers"))
    return name in rules and name != "bitcast_convert_type" and rules[name].__module__ in families


def constant_from(value: np.ndarray[Any, Any]) -> mx.array:
    """A scalar constant of a body."""
    return constant(value.item(), mlx_dtype(value.dtype))


# Positions ----------------------------------------------------------------------------------------------


@rules.define("argmax")
def argmax(equation: Equation, x: mx.array) -> mx.array:
    return _position(equation, x, mx.argmax, highest)


@rules.define("argmin")
def argmin(equation: Equation, x: mx.array) -> mx.array:
    return _position(equation, x, mx.argmin, lowest)


def _position(equation: Equation, x: mx.array, pick: Any, extreme: Callable[[mx.Dtype], Any]) -> mx.array:
    """The first extreme, or the first NaN: MLX passes over NaN, so floats become integers of the same order."""
    (axis,) = equation.params["axes"]
    if is_complex(x):
        raise unsupported(equation, "complex numbers have no order in MLX")
    if x.size == 0:
        return mx.zeros(equation.shape, out_dtype(equation))
    if is_float(x):
        key = total_order(x + 0.0)  # -0 + 0 is 0: zeros of either sign are equal
        x = mx.where(mx.isnan(x), constant_like(key, extreme(key.dtype)), key)
    if is_bool(x):
        x = x.astype(mx.uint8)
    return cast(pick(x, axis), out_dtype(equation))


# Running reductions ---------------------------------------------------------------------------------------

_RUNNING: dict[str, Any] = {
    "cumsum": mx.cumsum,
    "cumprod": mx.cumprod,
    "cummax": mx.cummax,
    "cummin": mx.cummin,
}


def running(name: str, x: mx.array, axis: int, reverse: bool) -> mx.array:
    """A running reduction in the dtype of ``x``, accumulated in float32 for half precision."""
    if x.size == 0:
        return x
    out = _RUNNING[name](wide(x), axis=axis, reverse=reverse)
    return cast(out, x.dtype)


def _running_rule(name: str) -> Callable[[Equation, mx.array], mx.array]:
    return lambda equation, x: running(name, x, equation.params["axis"], equation.params["reverse"])


for _name in _RUNNING:
    rules.define(_name)(_running_rule(_name))


@rules.define("cumlogsumexp")
def cumlogsumexp(equation: Equation, x: mx.array) -> mx.array:
    if x.size == 0:
        return x
    if is_complex(x) or x.dtype == mx.float64:
        raise unsupported(equation, "MLX has a cumulative logsumexp in float32 only")
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    return cast(mx.logcumsumexp(wide(x), axis=axis, reverse=reverse), x.dtype)
