"""Triangular systems. MLX only has the inverse of a triangle, which loses accuracy as the matrix grows.

Here a system is halved until it is small, each half being substituted into the next: the error stays that of
substitution, and a zero on the diagonal gives infinity or NaN instead of ending the process.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from m2ml_mlx.rules.elementwise import complex_of
from m2ml_mlx.rules.table import is_complex, numpy_dtype

#: Systems of at most this size are solved with the triangle's inverse.
LEAF = 16


def transpose(a: mx.array) -> mx.array:
    return mx.swapaxes(a, -1, -2)


def triangle(a: mx.array, *, lower: bool) -> mx.array:
    """``a`` with zeros in the other triangle, whatever that held."""
    mask = mx.tril(mx.ones(a.shape[-2:])) if lower else mx.triu(mx.ones(a.shape[-2:]))
    return mx.where(mask > 0, a, mx.array(0, a.dtype))


def real_blocks(a: mx.array) -> mx.array:
    """Each complex element as the real block [[x, -y], [y, x]]: products and Cholesky factors stay what they are."""
    rows = [mx.stack([a.real, -a.imag], axis=-1), mx.stack([a.imag, a.real], axis=-1)]
    return mx.stack(rows, axis=-3).reshape((*a.shape[:-2], 2 * a.shape[-2], 2 * a.shape[-1]))


def solve_lower(a: mx.array, b: mx.array, *, unit_diagonal: bool) -> mx.array:
    """The x of ``L x = b``, where ``L`` is the lower triangle of ``a[..., n, n]`` and ``b`` is ``[..., n, m]``."""
    if is_complex(b):
        return _solve_complex(a, b, unit_diagonal)
    if unit_diagonal:
        a = mx.where(mx.eye(a.shape[-1]) > 0, mx.array(1, a.dtype), a)
    return _solve(a, b)


def _solve(a: mx.array, b: mx.array) -> mx.array:
    size = a.shape[-1]
    if size <= LEAF:
        return mx.linalg.tri_inv(_invertible(a)) @ b
    half = math.ceil(size / 2)
    first = _solve(a[..., :half, :half], b[..., :half, :])
    rest = b[..., half:, :] - a[..., half:, :half] @ first
    return mx.concatenate([first, _solve(a[..., half:, half:], rest)], axis=-2)


def _invertible(a: mx.array) -> mx.array:
    """Zeros on the diagonal as the least positive number, whose reciprocal is infinite: LAPACK refuses zeros."""
    least = mx.array(np.finfo(numpy_dtype(a.dtype)).smallest_subnormal, a.dtype)
    return mx.where((mx.eye(a.shape[-1]) > 0) & (a == 0), least, a)


def _solve_complex(a: mx.array, b: mx.array, unit_diagonal: bool) -> mx.array:
    """Rows are divided by the diagonal; with a unit diagonal, elements as real 2 x 2 blocks are triangular again."""
    if not unit_diagonal:
        pivots = mx.diagonal(a, axis1=-2, axis2=-1)[..., None]
        a, b = a / pivots, b / pivots
    size, width = b.shape[-2:]
    parts = mx.stack([b.real, b.imag], axis=-2).reshape((*b.shape[:-2], 2 * size, width))
    within = mx.kron(mx.eye(size), mx.ones((2, 2))) > 0
    blocks = mx.where(within, mx.eye(2 * size), real_blocks(a))
    x = _solve(blocks, parts).reshape((*b.shape[:-2], size, 2, width))
    return complex_of(x[..., 0, :], x[..., 1, :])
