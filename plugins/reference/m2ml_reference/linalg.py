"""Linear algebra by LAPACK, whose order and sign conventions are JAX's.

A matrix that a routine fails on (not positive definite, not finite, no convergence) gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from m2ml.errors import ExecutionError
from m2ml.interpreter import Equation
from m2ml_reference.values import Array, is_integer, rules, wide

Matrices = Array | Sequence[Array]


def _define(name: str, *ranks: int) -> Callable[[Callable[..., Matrices]], Callable[..., Matrices]]:
    """Register a function of single matrices (or vectors: ``ranks`` says) as a rule that maps over leading axes."""

    def register(function: Callable[..., Matrices]) -> Callable[..., Matrices]:
        def rule(equation: Equation, *arrays: Array) -> list[Array]:
            batch = arrays[0].shape[: arrays[0].ndim - ranks[0]]
            outs = [np.zeros(aval.shape, wide(aval.dtype)) for aval in equation.outputs]
            for index in np.ndindex(*batch):
                for out, value in zip(outs, _attempt(function, equation, [x[index] for x in arrays]), strict=True):
                    out[index] = value
            return outs

        rules.define(*name.split())(rule)
        return function

    return register


def _attempt(function: Callable[..., Matrices], equation: Equation, arrays: list[Array]) -> Sequence[Any]:
    try:
        out = function(equation, *arrays)
    except np.linalg.LinAlgError:
        return [0 if is_integer(aval.dtype) else np.nan for aval in equation.outputs]
    return [out] if isinstance(out, np.ndarray) else out


def _lapack(name: str, *arrays: Array) -> Any:
    return lapack.get_lapack_funcs((name,), arrays)[0]


def _kind(real: str, hermitian: str, *arrays: Array) -> Any:
    """A routine that LAPACK names differently for real and for complex matrices."""
    return _lapack(hermitian if any(map(np.iscomplexobj, arrays)) else real, *arrays)


def _checked(*results: Any) -> Sequence[Any]:
    """What a LAPACK routine gave, less its status, which must say that it came through."""
    *values, status = results
    if status != 0:
        raise np.linalg.LinAlgError
    return values


@_define("cholesky", 2)
def cholesky(equation: Equation, a: Array) -> Array:
    """The lower factor; the upper triangle is not read and stays, as LAPACK leaves it."""
    return np.linalg.cholesky(a) + np.triu(a, 1) if a.size else a


@_define("cholesky_update", 2, 1)
def cholesky_update(equation: Equation, r: Array, w: Array) -> Array:
    """The upper factor of ``r.T r + w w.T``, by Givens rotations."""
    r, w = r.copy(), w.copy()
    for k in range(len(w)):
        length = np.hypot(r[k, k], w[k])
        cosine, sine = (r[k, k] / length, -w[k] / length) if w[k] != 0 else (1.0, 0.0)
        r[k], w = cosine * r[k] - sine * w, cosine * w + sine * r[k]
    return r


@_define("symmetric_product symmetric_update", 2, 2)
def symmetric_product(equation: Equation, a: Array, c: Array) -> Array:
    return np.asarray(equation.params["alpha"] * (a @ a.T) + equation.params["beta"] * c)


@_define("triangular_solve", 2, 2)
def triangular_solve(equation: Equation, a: Array, b: Array) -> Array:
    """Solves ``op(a) x = b``, or ``x op(a) = b``; a zero on the diagonal divides by zero."""
    params = equation.params
    if not b.size:
        return b
    transposed = params["transpose_a"]
    if params["conjugate_a"] and not transposed:
        a = a.conj()
    (solve,) = blas.get_blas_funcs(("trsm",), (a, b))
    return np.asarray(
        solve(
            1.0,
            a,
            b,
            side=not params["left_side"],
            lower=params["lower"],
            trans_a=(2 if params["conjugate_a"] else 1) if transposed else 0,
            diag=params["unit_diagonal"],
        )
    )


@_define("tridiagonal_solve", 1, 1, 1, 2)
def tridiagonal_solve(equation: Equation, lower: Array, diagonal: Array, upper: Array, b: Array) -> Array:
    if len(diagonal) <= 1:
        return b / diagonal[:, None]
    return np.asarray(_checked(*_lapack("gtsv", diagonal, b)(lower[1:], diagonal, upper[:-1], b))[-1])


def permutation(pivots: Array, size: int) -> Array:
    """The order of rows after swapping row ``i`` with row ``pivots[i]`` for each i in turn."""
    order = np.arange(size, dtype=np.int32)
    for i, j in enumerate(pivots):
        order[[i, j]] = order[[j, i]]
    return order


@_define("lu", 2)
def lu(equation: Equation, a: Array) -> list[Array]:
    if not a.size:
        return [a, np.zeros(0, np.int32), np.arange(a.shape[0], dtype=np.int32)]
    factors, pivots, _ = _lapack("getrf", a)(a)
    return [factors, pivots, permutation(pivots, a.shape[0])]


@_define("lu_pivots_to_permutation", 1)
def lu_pivots_to_permutation(equation: Equation, pivots: Array) -> Array:
    return permutation(pivots, equation.params["permutation_size"])


@_define("geqrf", 2)
def geqrf(equation: Equation, a: Array) -> Sequence[Array]:
    if not a.size:
        return [a, np.zeros(0)]
    factors, scales, _, status = _lapack("geqrf", a)(a)
    return _checked(factors, scales, status)


@_define("geqp3", 2, 1)
def geqp3(equation: Equation, a: Array, fixed: Array) -> Sequence[Array]:
    if fixed.any():
        raise ExecutionError("geqp3 with columns fixed in front is not defined by the reference")
    factors, order, scales, _, status = _lapack("geqp3", a)(a)
    return _checked(factors, order, scales, status)


@_define("householder_product", 2, 1)
def householder_product(equation: Equation, a: Array, scales: Array) -> Array:
    """The first columns of the product of the reflectors ``1 - scale v v^H``."""
    if not a.size or not scales.size:
        return np.eye(*a.shape, dtype=a.dtype)
    q, _, status = _kind("orgqr", "ungqr", a)(a, scales)
    return np.asarray(_checked(q, status)[0])


@_define("ormqr", 2, 1, 2)
def ormqr(equation: Equation, a: Array, scales: Array, c: Array) -> Array:
    size = c.shape[0 if equation.params["left"] else 1]
    square = np.eye(size, dtype=a.dtype)
    square[:, : a.shape[1]] = a[:, :size]
    q = np.asarray(householder_product(equation, square, scales))
    q = q.conj().T if equation.params["transpose"] else q
    return q @ c if equation.params["left"] else c @ q


@_define("qr", 2)
def qr(equation: Equation, a: Array) -> Sequence[Array]:
    mode = "full" if equation.params["full_matrices"] else "economic"
    if not a.size:
        q, r = np.linalg.qr(a, mode="complete" if mode == "full" else "reduced")
        return [q, r, np.arange(a.shape[1])][: len(equation.outputs)]
    pivoting = bool(equation.params.get("pivoting"))
    return list(scipy.linalg.qr(a, mode=mode, pivoting=pivoting, check_finite=False))


def _chosen(equation: Equation, count: int) -> slice:
    return slice(*(equation.params.get("subset_by_index") or (0, count)))


@_define("eigh", 2)
def eigh(equation: Equation, a: Array) -> list[Array]:
    """Eigenvectors and eigenvalues, in rising order; one triangle is read."""
    values, vectors = np.linalg.eigh(a, UPLO="L" if equation.params["lower"] else "U")
    chosen = _chosen(equation, len(values))
    return [vectors[:, chosen], values[chosen]]


@_define("eigh_jacobi", 2)
def eigh_jacobi(equation: Equation, a: Array) -> list[Array]:
    values, vectors = np.linalg.eigh(a, UPLO="L" if equation.params["lower"] else "U")
    return [values, vectors]


@_define("eig", 2)
def eig(equation: Equation, a: Array) -> list[Array]:
    left, right = (equation.params[f"compute_{side}_eigenvectors"] for side in ("left", "right"))
    if not a.size:
        return [np.zeros(aval.shape[-1:] * i) for i, aval in zip((1, 2, 2), equation.outputs, strict=False)]
    if not np.isfinite(a).all():
        raise np.linalg.LinAlgError
    out = scipy.linalg.eig(a, left=left, right=right)
    return list(out) if isinstance(out, tuple) else [out]


@_define("svd", 2)
def svd(equation: Equation, a: Array) -> list[Array]:
    """Singular values in falling order, then the left and the (conjugate transposed) right vectors."""
    if not equation.params["compute_uv"]:
        values = np.linalg.svd(a, compute_uv=False)
        return [values[_chosen(equation, len(values))]]
    left, values, right = np.linalg.svd(a, full_matrices=equation.params["full_matrices"])
    if equation.params.get("subset_by_index") is None:
        return [values, left, right]
    chosen = _chosen(equation, len(values))
    return [values[chosen], left[:, chosen], right[chosen]]


@_define("schur", 2)
def schur(equation: Equation, a: Array) -> list[Array]:
    kind = "complex" if np.iscomplexobj(a) else "real"
    return list(scipy.linalg.schur(a, output=kind, check_finite=False)[: len(equation.outputs)])


@_define("hessenberg", 2)
def hessenberg(equation: Equation, a: Array) -> Sequence[Array]:
    """The Hessenberg form with the reflectors below it, and their scales."""
    if not a.size:
        return [a, np.zeros(0)]
    return _checked(*_lapack("gehrd", a)(a))


@_define("tridiagonal", 2)
def tridiagonal(equation: Equation, a: Array) -> Sequence[Array]:
    """A Hermitian matrix reduced to a tridiagonal one: reflectors, diagonal, off-diagonal, scales (and status)."""
    results = _checked(*_kind("sytrd", "hetrd", a)(a, lower=equation.params["lower"]))
    return [*results, np.zeros((), np.int32)][: len(equation.outputs)]
