"""Linear algebra on MLX's CPU stream, where its factorisations (LAPACK) live.

LAPACK is called with the operand laid out as JAX lays it out, so that signs agree wherever a factorisation is
unique only up to them. An operand LAPACK would reject, which ends MLX's thread, is replaced first and its
results become NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from m2ml.interpreter import Equation, Rule
from m2ml_mlx.rules.elementwise import complex_of
from m2ml_mlx.rules.table import cast, full, is_complex, out_dtype, rules, unsupported, wide
from m2ml_mlx.rules.triangular import real_blocks, solve_lower, transpose, triangle

NAN = float("nan")


def _on_cpu(rule: Callable[..., Any]) -> Rule:
    """The rule on the CPU stream, half precision computed in single precision."""

    @functools.wraps(rule)
    def wrapped(equation: Equation, *arrays: mx.array) -> list[mx.array]:
        with mx.stream(mx.cpu):
            out = rule(equation, *(wide(x) for x in arrays))
            out = out if isinstance(out, list) else [out]
            return [cast(x, out_dtype(equation, i)) for i, x in enumerate(out)]

    return wrapped


def _eye_like(a: mx.array) -> mx.array:
    return mx.eye(a.shape[-2], a.shape[-1], dtype=a.dtype)


def _finite(a: mx.array) -> tuple[mx.array, mx.array]:
    """``a`` with each matrix that is not finite replaced by the identity, and which ones those are."""
    fine = mx.isfinite(a.real) & mx.isfinite(a.imag) if is_complex(a) else mx.isfinite(a)
    bad = mx.logical_not(mx.all(fine, axis=(-2, -1)))
    return mx.where(bad[..., None, None], _eye_like(a), a), bad


def _poison(bad: mx.array, x: mx.array) -> mx.array:
    """``x`` with NaN for each matrix (or vector) that is ``bad``."""
    mask = bad.reshape(bad.shape + (1,) * (x.ndim - bad.ndim))
    return mx.where(mask, mx.array(NAN, x.dtype), x)


def _empty(equation: Equation) -> list[mx.array]:
    """The results of factorising empty matrices: orthonormal factors are identities."""
    return [
        mx.broadcast_to(mx.eye(o.shape[-2], o.shape[-1], dtype=out_dtype(equation, i)), o.shape)
        if o.ndim >= 2
        else mx.zeros(o.shape, out_dtype(equation, i))
        for i, o in enumerate(equation.outputs)
    ]


# Cholesky -------------------------------------------------------------------------------------------


@rules.define("cholesky")
@_on_cpu
def cholesky(equation: Equation, a: mx.array) -> mx.array:
    """The lower factor of the matrix whose lower triangle is given; NaN where it is not positive definite.

    The upper triangle stays as it is, as LAPACK leaves it: `jax.lax.linalg.cholesky` clears it.
    """
    if a.size == 0:
        return a
    if is_complex(a):
        hermitian = mx.where(_eye_like(a.real) > 0, a.real.astype(mx.complex64), a)
        blocks = mx.linalg.cholesky(real_blocks(hermitian))
        factor = complex_of(blocks[..., ::2, ::2], blocks[..., 1::2, ::2])
    else:
        factor = mx.linalg.cholesky(a)
    pivots = mx.diagonal(factor, axis1=-2, axis2=-1)
    bad = mx.logical_not(mx.all((pivots.real if is_complex(a) else pivots) > 0, axis=-1))
    return _poison(bad, mx.where(mx.tril(mx.ones(a.shape[-2:])) > 0, factor, a))


# LU -------------------------------------------------------------------------------------------------


def _permutation(pivots: mx.array, size: int) -> mx.array:
    """The permutation that swapping row i with row ``pivots[..., i]``, one i after the other, amounts to."""
    count = pivots.shape[-1]
    rows = mx.arange(size, dtype=mx.int32)
    if count == 0:
        return mx.broadcast_to(rows, (*pivots.shape[:-1], size))
    step, other = mx.arange(count, dtype=mx.int32)[:, None], pivots[..., None].astype(mx.int32)
    swaps = mx.where(rows == step, other, mx.where(rows == other, step, rows))
    while swaps.shape[-2] > 1:
        pairs = swaps.shape[-2] // 2
        first, second, rest = (
            swaps[..., 0 : 2 * pairs : 2, :],
            swaps[..., 1 : 2 * pairs : 2, :],
            swaps[..., 2 * pairs :, :],
        )
        swaps = mx.concatenate([mx.take_along_axis(first, second, -1), rest], axis=-2)
    return mx.squeeze(swaps, -2)


@rules.define("lu_pivots_to_permutation")
def lu_pivots_to_permutation(equation: Equation, pivots: mx.array) -> mx.array:
    return cast(_permutation(pivots, equation.params["permutation_size"]), out_dtype(equation))


@rules.define("lu")
@_on_cpu
def lu(equation: Equation, a: mx.array) -> list[mx.array]:
    if is_complex(a):
        raise unsupported(equation, "MLX factorises real matrices only")
    if a.size == 0:
        pivots = mx.zeros(equation.outputs[1].shape, mx.int32)
        return [a, pivots, cast(_permutation(pivots, a.shape[-2]), mx.int32)]
    factors, pivots = mx.linalg.lu_factor(a)
    pivots = pivots.astype(mx.int32)
    return [factors, pivots, _permutation(pivots, a.shape[-2])]


# QR -------------------------------------------------------------------------------------------------


@rules.define("qr")
@_on_cpu
def qr(equation: Equation, a: mx.array) -> list[mx.array]:
    params, (rows, columns) = equation.params, a.shape[-2:]
    if is_complex(a) or params.get("pivoting"):
        raise unsupported(equation, "MLX factorises real matrices without pivoting only")
    if a.size == 0:
        return _empty(equation)
    if not params["full_matrices"] or rows <= columns:
        return list(mx.linalg.qr(a))
    # The reflectors of zero columns are the identity, so padding completes Q.
    zeros = mx.zeros((*a.shape[:-1], rows - columns), a.dtype)
    q, r = mx.linalg.qr(mx.concatenate([a, zeros], axis=-1))
    return [q, r[..., :columns]]


@rules.define("householder_product")
@_on_cpu
def householder_product(equation: Equation, a: mx.array, taus: mx.array) -> mx.array:
    """The first columns of H1 H2 ... Hk = 1 - V T V^H, Hi = 1 - tau v v^H, with T = (1 + D striu(V^H V))^-1 D."""
    count, (rows, columns) = taus.shape[-1], a.shape[-2:]
    eye = mx.broadcast_to(mx.eye(rows, columns, dtype=a.dtype), a.shape)
    if count == 0 or a.size == 0:
        return eye
    below = mx.tril(mx.ones((rows, count)), -1) > 0
    v = mx.where(below, a[..., :count], mx.eye(rows, count, dtype=a.dtype))
    v_h = transpose(mx.conj(v) if is_complex(v) else v)
    product = triangle(taus[..., None] * (v_h @ v), lower=False)
    right = taus[..., None] * (v_h @ eye)
    # An upper triangle read backwards is a lower one.
    solved = solve_lower(product[..., ::-1, ::-1], right[..., ::-1, :], unit_diagonal=True)
    return eye - v @ solved[..., ::-1, :]


# Eigenvalues and singular values --------------------------------------------------------------------


def _whole(subset: Any, size: int) -> bool:
    return subset is None or tuple(subset) == (0, size)


@rules.define("eigh")
@_on_cpu
def eigh(equation: Equation, a: mx.array) -> list[mx.array]:
    """Eigenvectors as columns and eigenvalues in ascending order, from one triangle."""
    if not _whole(equation.params["subset_by_index"], a.shape[-1]):
        raise unsupported(equation, "MLX computes all eigenvalues or none")
    if a.size == 0:
        return _empty(equation)
    lower = equation.params["lower"]
    a, bad = _finite(triangle(a, lower=lower))
    values, vectors = mx.linalg.eigh(transpose(a), UPLO="U" if lower else "L")
    # The transpose of a Hermitian matrix is its conjugate.
    vectors = mx.conj(vectors) if is_complex(vectors) else vectors
    return [_poison(bad, vectors), _poison(bad, values)]


@rules.define("eig")
@_on_cpu
def eig(equation: Equation, a: mx.array) -> list[mx.array]:
    params = equation.params
    if params["compute_left_eigenvectors"] or params["compute_right_eigenvectors"]:
        raise unsupported(equation, "MLX orders eigenvalues in its own way when it computes eigenvectors")
    if a.size == 0:
        return _empty(equation)
    a, bad = _finite(a)
    return [_poison(bad, mx.linalg.eigvals(transpose(a)))]


@rules.define("svd")
@_on_cpu
def svd(equation: Equation, a: mx.array) -> list[mx.array]:
    params, size = equation.params, min(a.shape[-2:])
    if not _whole(params.get("subset_by_index"), size):
        raise unsupported(equation, "MLX computes all singular values or none")
    if a.size == 0:
        values, *vectors = _empty(equation)
        return [full(values.shape, 0, values.dtype), *vectors]
    a, bad = _finite(a)
    if not params["compute_uv"]:
        alone: Any = mx.linalg.svd(transpose(a), compute_uv=False)
        return [_poison(bad, alone)]
    u, values, vt = _svd(a) if params["full_matrices"] else _thin_svd(a)
    return [_poison(bad, x) for x in (values, u, vt)]


def _svd(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    v, values, ut = mx.linalg.svd(transpose(a))
    return transpose(ut), values, transpose(v)


def _thin_svd(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """MLX makes square factors only: a tall matrix is reduced first, so that they stay small."""
    rows, columns = a.shape[-2:]
    if rows < columns:
        v, values, ut = _thin_svd(transpose(a))
        return transpose(ut), values, transpose(v)
    if rows > 2 * columns and not is_complex(a):
        q, r = mx.linalg.qr(a)
        u, values, vt = _svd(r)
        return q @ u, values, vt
    u, values, vt = _svd(a)
    return u[..., :columns], values, vt


# Linear systems -------------------------------------------------------------------------------------


@rules.define("triangular_solve")
@_on_cpu
def triangular_solve(equation: Equation, a: mx.array, b: mx.array) -> mx.array:
    params = equation.params
    if b.size == 0:
        return b
    lower, left = params["lower"], params["left_side"]
    if params["conjugate_a"] and is_complex(a):
        a = mx.conj(a)
    # A right-hand system is a left-hand one, transposed.
    if params["transpose_a"] == left:
        a, lower = transpose(a), not lower
    b = b if left else transpose(b)
    unit = params["unit_diagonal"]
    if lower:
        x = solve_lower(a, b, unit_diagonal=unit)
    else:
        x = solve_lower(a[..., ::-1, ::-1], b[..., ::-1, :], unit_diagonal=unit)[..., ::-1, :]
    return x if left else transpose(x)


#: The largest tridiagonal system that is solved as a dense one.
DENSE_LIMIT = 256


@rules.define("tridiagonal_solve")
@_on_cpu
def tridiagonal_solve(equation: Equation, below: mx.array, main: mx.array, above: mx.array, b: mx.array) -> mx.array:
    """A dense LU with partial pivoting, which is what LAPACK's own solver amounts to."""
    size = main.shape[-1]
    if is_complex(b) or size > DENSE_LIMIT or equation.params.get("perturb_singular"):
        raise unsupported(equation, f"MLX solves real tridiagonal systems of at most {DENSE_LIMIT} unknowns only")
    if b.size == 0:
        return b
    row, column = mx.arange(size)[:, None], mx.arange(size)
    a = mx.zeros((*main.shape, size), b.dtype)
    for offset, diagonal in ((-1, below), (0, main), (1, above)):
        a = mx.where(column - row == offset, diagonal[..., None], a)
    factors, pivots = mx.linalg.lu_factor(a)
    permuted = mx.take_along_axis(b, _permutation(pivots, size)[..., None], axis=-2)
    y = solve_lower(factors, permuted, unit_diagonal=True)
    return solve_lower(factors[..., ::-1, ::-1], y[..., ::-1, :], unit_diagonal=False)[..., ::-1, :]
