"""Contractions: every dot_general as one matrix product of views, exact for integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.conversions import convert
from m2ml_mlx.rules.structure import permute, reshape_to
from m2ml_mlx.rules.table import (
    FLOATS,
    SIGNED,
    UNSIGNED,
    bits,
    cast,
    constant_like,
    full,
    highest,
    is_bool,
    lowest,
    out_dtype,
    rules,
)

#: Integers up to this size are exact in float32.
_EXACT = 2**24
#: Below this many multiplications an integer product is a broadcast product and a sum.
_SMALL = 2**14


@rules.define("dot_general")
def dot_general(equation: Equation, x: mx.array, y: mx.array) -> mx.array:
    (x_contract, y_contract), (x_batch, y_batch) = equation.params["dimension_numbers"]
    dtype = out_dtype(equation)
    if dtype in FLOATS or dtype == mx.complex64:
        x, y = convert(x, dtype), convert(y, dtype)
    out = contract(x, y, x_contract, y_contract, x_batch, y_batch, dtype)
    return reshape_to(out, equation.shape)


def contract(
    x: mx.array,
    y: mx.array,
    x_contract: Sequence[int],
    y_contract: Sequence[int],
    x_batch: Sequence[int],
    y_batch: Sequence[int],
    dtype: mx.Dtype,
) -> mx.array:
    """The contraction in ``dtype``, with the free axes of each side possibly merged into one."""
    if len(x_contract) > 1:
        pairs = sorted(zip(x_contract, y_contract, strict=True))
        x_contract, y_contract = [a for a, _ in pairs], [b for _, b in pairs]
    x_free = [axis for axis in range(x.ndim) if axis not in x_batch and axis not in x_contract]
    y_free = [axis for axis in range(y.ndim) if axis not in y_batch and axis not in y_contract]
    return matrix_product(_matrix(x, x_batch, x_free, x_contract), _matrix(y, y_batch, y_contract, y_free), dtype)


def _matrix(x: mx.array, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> mx.array:
    """``x`` as [*batch, rows, columns]: a view unless several axes have to be merged out of order."""
    sizes = [x.shape[axis] for axis in batch]
    height, width = (math.prod(x.shape[axis] for axis in axes) for axes in (rows, columns))
    merged = len(rows) != 1 or len(columns) != 1
    swapped = [*batch, *columns, *rows]
    if merged and swapped == sorted(swapped) and rows and columns:
        return mx.swapaxes(mx.reshape(x, [*sizes, width, height]), -1, -2)
    return reshape_to(permute(x, [*batch, *rows, *columns]), [*sizes, height, width])


def matrix_product(x: mx.array, y: mx.array, dtype: mx.Dtype) -> mx.array:
    """``x @ y`` over the last two axes in ``dtype``; integers wrap as if summed in ``dtype``, booleans or."""
    shape = (*x.shape[:-1], y.shape[-1])
    if 0 in shape or x.shape[-1] == 0:
        return full(shape, 0, dtype)
    if dtype == mx.bool_:
        return mx.matmul(x.astype(mx.float32), y.astype(mx.float32)) > 0
    if x.dtype in FLOATS or x.dtype == mx.complex64:
        return mx.multiply(x, y) if x.shape[-1] == 1 else mx.matmul(x, y)
    if is_bool(x):
        x = x.astype(mx.uint8)
    if is_bool(y):
        y = y.astype(mx.uint8)
    return integer_product(x, y, dtype)


def integer_product(x: mx.array, y: mx.array, dtype: mx.Dtype) -> mx.array:
    """The exact integer product modulo the width of ``dtype``, without integer matrix units or float64."""
    inner = x.shape[-1]
    if math.prod(x.shape) * y.shape[-1] <= _SMALL or inner == 1:
        products = mx.expand_dims(x.astype(dtype), -1) * mx.expand_dims(y.astype(dtype), -3)
        return cast(mx.sum(products, -2), dtype)
    x_limbs, y_limbs = _limbs(x, dtype), _limbs(y, dtype)
    chunk = max(1, (_EXACT - 1) // (_reach(x) * _reach(y)))
    unsigned = UNSIGNED[dtype.size]
    total: mx.array | None = None
    for i, left in enumerate(x_limbs):
        for j, right in enumerate(y_limbs):
            shift = 8 * (i + j)
            if shift >= bits(dtype):
                continue
            part = _chunked_product(left, right, min(chunk, inner), dtype).astype(unsigned)
            part = mx.left_shift(part, constant_like(part, shift)) if shift else part
            total = part if total is None else total + part
    assert total is not None
    return total.astype(dtype)


def _reach(x: mx.array) -> int:
    """The greatest magnitude of a limb of ``x``."""
    if x.dtype.size == 1:
        return int(max(highest(x.dtype), -lowest(x.dtype)))
    return 128


def _limbs(x: mx.array, dtype: mx.Dtype) -> list[mx.array]:
    """``x`` modulo the width of ``dtype`` as float32 digits in base 256: itself, or digits within [-128, 128)."""
    if x.dtype.size == 1:
        return [x.astype(mx.float32)]
    rest = x.astype(UNSIGNED[dtype.size])
    # Digits with a sign need one place more than digits without.
    count = min(x.dtype.size + 1, dtype.size)
    limbs = []
    for index in range(count):
        digit = rest.astype(mx.int8)
        limbs.append(digit.astype(mx.float32))
        if index + 1 < count:
            rest = rest - digit.astype(rest.dtype)
            rest = mx.right_shift(rest, constant_like(rest, 8))
    return limbs


def _chunked_product(x: mx.array, y: mx.array, chunk: int, dtype: mx.Dtype) -> mx.array:
    """A float32 product of digits as integers: exact, because no sum is longer than ``chunk``."""
    wide = SIGNED[max(dtype.size, 4)]
    inner = x.shape[-1]
    if inner <= chunk:
        return mx.matmul(x, y).astype(wide)
    count = -(-inner // chunk)
    missing = count * chunk - inner
    if missing:
        x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
        y = mx.pad(y, [(0, 0)] * (y.ndim - 2) + [(0, missing), (0, 0)])
    x = mx.moveaxis(mx.unflatten(x, -1, (count, chunk)), -2, 0)
    y = mx.moveaxis(mx.unflatten(y, -2, (count, chunk)), -3, 0)
    return mx.sum(mx.matmul(x, y).astype(wide), 0)
