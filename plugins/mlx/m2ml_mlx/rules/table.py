"""The table of MLX rules, and the small vocabulary that every family of rules shares.

A rule builds a piece of an MLX graph from static information only, so that it can run while `mx.compile`
traces. Its inputs have exactly the shapes and dtypes the equation says, and its outputs must too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from m2ml.errors import UnsupportedPrimitive
from m2ml.interpreter import Equation, Rules

#: Primitive name -> rule. Filled by importing `m2ml_mlx.rules`.
rules = Rules()

_PAIRS: tuple[tuple[Any, mx.Dtype], ...] = (
    (np.bool_, mx.bool_),
    (np.int8, mx.int8),
    (np.int16, mx.int16),
    (np.int32, mx.int32),
    (np.int64, mx.int64),
    (np.uint8, mx.uint8),
    (np.uint16, mx.uint16),
    (np.uint32, mx.uint32),
    (np.uint64, mx.uint64),
    (np.float16, mx.float16),
    (ml_dtypes.bfloat16, mx.bfloat16),
    (np.float32, mx.float32),
    (np.float64, mx.float64),
    (np.complex64, mx.complex64),
)
_TO_MLX = {np.dtype(n): m for n, m in _PAIRS}
_TO_NUMPY: dict[mx.Dtype, np.dtype[Any]] = {m: np.dtype(n) for n, m in _PAIRS}

UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
SIGNED = {1: mx.int8, 2: mx.int16, 4: mx.int32, 8: mx.int64}
FLOATS = frozenset({mx.float16, mx.bfloat16, mx.float32, mx.float64})
HALVES = frozenset({mx.float16, mx.bfloat16})


def mlx_dtype(dtype: Any) -> mx.Dtype:
    """The MLX dtype of a NumPy or ml_dtypes dtype."""
    try:
        return _TO_MLX[np.dtype(dtype)]
    except KeyError:
        raise UnsupportedPrimitive(f"MLX has no arrays of dtype {np.dtype(dtype).name}") from None


def numpy_dtype(dtype: mx.Dtype) -> np.dtype[Any]:
    """The NumPy (or ml_dtypes) dtype of an MLX dtype."""
    return _TO_NUMPY[dtype]


def out_dtype(equation: Equation, index: int = 0) -> mx.Dtype:
    """The MLX dtype of an output of ``equation``."""
    return mlx_dtype(equation.outputs[index].dtype)


def unsupported(equation: Equation, reason: str) -> UnsupportedPrimitive:
    """The error for an equation that MLX cannot express: it names the equation, then the reason."""
    return UnsupportedPrimitive(f"MLX cannot run {equation.describe()}: {reason}")


def is_float(x: mx.array) -> bool:
    return x.dtype in FLOATS


def is_complex(x: mx.array) -> bool:
    return bool(x.dtype == mx.complex64)


def is_bool(x: mx.array) -> bool:
    return bool(x.dtype == mx.bool_)


def is_signed(x: mx.array) -> bool:
    """Whether ``x`` holds signed integers."""
    return x.dtype in SIGNED.values()


def is_unsigned(x: mx.array) -> bool:
    """Whether ``x`` holds unsigned integers (bool is not one)."""
    return x.dtype in UNSIGNED.values()


def is_integer(x: mx.array) -> bool:
    """Whether ``x`` holds integers (bool is not one)."""
    return is_signed(x) or is_unsigned(x)


def bits(dtype: mx.Dtype) -> int:
    """Width of a dtype in bits."""
    return int(dtype.size) * 8


def constant(value: Any, dtype: mx.Dtype) -> mx.array:
    """A 0-d constant: unlike a bare Python number it never changes the dtype of what it meets."""
    if dtype == mx.uint64 or dtype == mx.int64:
        return mx.array(np.array(int(value), numpy_dtype(dtype)))
    return mx.array(value, dtype)


def constant_like(x: mx.array, value: Any) -> mx.array:
    """`constant` in the dtype of ``x``."""
    return constant(value, x.dtype)


def lowest(dtype: mx.Dtype) -> Any:
    """The least value of a dtype (minus infinity for floats): the identity of max."""
    if dtype in FLOATS:
        return -math.inf
    return False if dtype == mx.bool_ else int(np.iinfo(numpy_dtype(dtype)).min)


def highest(dtype: mx.Dtype) -> Any:
    """The greatest value of a dtype (infinity for floats): the identity of min."""
    if dtype in FLOATS:
        return math.inf
    return True if dtype == mx.bool_ else int(np.iinfo(numpy_dtype(dtype)).max)


def cast(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """``x`` in ``dtype`` by MLX's own conversion, and ``x`` itself when nothing changes."""
    return x if x.dtype == dtype else x.astype(dtype)


def wide(x: mx.array) -> mx.array:
    """A half-precision ``x`` as float32: what formulas with more than one rounding are evaluated in."""
    return x.astype(mx.float32) if x.dtype in HALVES else x


def full(shape: Sequence[int], value: Any, dtype: mx.Dtype) -> mx.array:
    """An array of one value, without memory of its own where it can be broadcast."""
    return mx.broadcast_to(constant(value, dtype), tuple(shape))


def as_unsigned(x: mx.array) -> mx.array:
    """The bits of ``x`` as unsigned integers of the same width."""
    return x if is_unsigned(x) else x.view(UNSIGNED[x.dtype.size])


def as_signed(x: mx.array) -> mx.array:
    """The bits of ``x`` as signed integers of the same width."""
    return x if is_signed(x) else x.view(SIGNED[x.dtype.size])
