"""Wide values: how exact results travel, and how they are rounded to a dtype.

A float of any width travels as float64 and a complex number as complex128, unrounded; integers and booleans travel
in their own dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

#: NumPy array of any dtype.
Array = np.ndarray[Any, Any]


@functools.cache
def is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.floating))


@functools.cache
def is_complex(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.complexfloating))


@functools.cache
def is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.integer))


@functools.cache
def is_unsigned(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.unsignedinteger))


@functools.cache
def wide(dtype: Any) -> np.dtype[Any]:
    """The dtype that carries values of ``dtype`` during a run."""
    if is_float(dtype):
        return np.dtype(np.float64)
    return np.dtype(np.complex128 if is_complex(dtype) else dtype)


def widen(array: Any) -> Array:
    array = np.asarray(array)
    return np.asarray(array.astype(wide(array.dtype), copy=False))


@functools.cache
def _is_extension(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a floating type of ml_dtypes, whose own conversion from float64 rounds twice."""
    return is_float(dtype) and (dtype.kind != "f" or dtype.name.startswith("bfloat"))


def narrow(array: Array, dtype: Any) -> Array:
    """A new array of ``dtype``: floats rounded once, to nearest even."""
    dtype = np.dtype(dtype)
    if _is_extension(dtype):
        array = round_to_dtype(array, dtype)
    with np.errstate(all="ignore"):
        return np.array(array, dtype=dtype)


def round_to_dtype(x: Array, dtype: Any) -> Array:
    """``x`` rounded to the nearest value of a float dtype, still in float64."""
    if dtype == np.float64:
        return x
    info = ml_dtypes.finfo(dtype)
    y = round_to_format(x, int(info.nmant), int(info.minexp))
    limit = float(info.max)
    overflow = np.array(np.inf).astype(dtype).astype(np.float64)
    if np.isfinite(overflow):
        return np.clip(y, -limit, limit)
    return np.where(np.abs(y) > limit, np.copysign(overflow, y), y)


def round_to_format(x: Array, mantissa_bits: int, least_exponent: int) -> Array:
    """``x`` rounded to ``mantissa_bits`` after the leading one; spacing is constant below ``2**least_exponent``."""
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(x)[1] - 1, least_exponent)
        rounded = np.ldexp(np.rint(np.ldexp(x, mantissa_bits - exponent)), exponent - mantissa_bits)
    return np.where(np.isfinite(x), rounded, x)
