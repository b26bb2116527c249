"""Cases of linear algebra. Where a result is unique up to signs or phases, the case multiplies the factors out."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import Draw, coin, number, one_of

linalg = lax.linalg


def _matrix(draw: Draw, *, square: bool = False, complex_too: bool = True) -> np.ndarray:
    """Well-conditioned matrices, batched or not: singular values from 0.9 to 3.1, times the number in the batch."""
    batch = one_of(draw, (), (2,), (0,), (1, 2))
    rows = one_of(draw, 1, 2, 3, 5)
    columns = rows if square else one_of(draw, 1, 2, 3, 5)
    rng = np.random.default_rng(number(draw))
    x = rng.standard_normal((*batch, rows, columns))
    if complex_too and coin(draw):
        x = x + 1j * rng.standard_normal(x.shape)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    numbers = 1 + np.arange(np.prod(batch, dtype=int), dtype=float).reshape((*batch, 1))
    values = numbers * np.linspace(3.1, 0.9, s.shape[-1])
    x = u * values[..., None, :] @ v
    return x.astype(np.complex64 if x.dtype.kind == "c" else np.float32)


def _positive(draw: Draw, **kind: bool) -> np.ndarray:
    x = _matrix(draw, square=True, **kind)
    return np.asarray(x @ np.conj(np.swapaxes(x, -1, -2)), x.dtype)


@covers("cholesky")
def cholesky(draw: Draw, name: str) -> Case:
    symmetrize = coin(draw)
    return lambda x: linalg.cholesky(x, symmetrize_input=symmetrize), [_positive(draw)]


@covers("triangular_solve")
def triangular_solve(draw: Draw, name: str) -> Case:
    a = _matrix(draw, square=True)
    a = a + 3 * np.eye(a.shape[-1], dtype=a.dtype)
    left, lower, transposed, conjugated, unit_diagonal = (coin(draw) for _ in range(5))
    columns = one_of(draw, 1, 3)
    shape = (a.shape[-1], columns) if left else (columns, a.shape[-1])
    b = np.resize(np.arange(1.0, 8.0), (*a.shape[:-2], *shape)).astype(a.dtype)
    return lambda a, b: linalg.triangular_solve(
        a,
        b,
        left_side=left,
        lower=lower,
        transpose_a=transposed,
        conjugate_a=conjugated and transposed,
        unit_diagonal=unit_diagonal,
    ), [a, b]


@covers("lu")
def lu(draw: Draw, name: str) -> Case:
    return lambda x: linalg.lu(x), [_matrix(draw)]


@covers("lu_pivots_to_permutation")
def pivots(draw: Draw, name: str) -> Case:
    size, extra = one_of(draw, 1, 3, 5), one_of(draw, 0, 2)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    p = np.stack([rng.integers(i, size + extra, (2,)) for i in range(size)], -1).astype(np.int32)
    return lambda p: linalg.lu_pivots_to_permutation(p, size + extra), [p]


@covers("qr")
def qr(draw: Draw, name: str) -> Case:
    full = coin(draw)
    return lambda x: linalg.qr(x, full_matrices=full), [_matrix(draw)]


@covers("householder_product")
def householder_product(draw: Draw, name: str) -> Case:
    x = _matrix(draw, complex_too=False)
    x = x if x.shape[-2] >= x.shape[-1] else np.swapaxes(x, -1, -2)
    taus = 2 / (1 + np.sum(np.tril(x, -1) ** 2, axis=-2))
    return public("householder_product", linalg), [x, taus.astype(x.dtype)]


@covers("eigh")
def eigh(draw: Draw, name: str) -> Case:
    """Eigenvalues 1.1, 2.2, 3.3, ...: apart, so that the eigenvectors are well-conditioned.

    The triangle that is not read holds other numbers.
    """
    x = _matrix(draw, square=True)
    q, _ = np.linalg.qr(x)
    values = 1.1 * np.arange(1.0, x.shape[-1] + 1)
    a = (q * values) @ np.conj(np.swapaxes(q, -1, -2))
    lower = coin(draw)
    unread = np.triu(a, 1) if lower else np.tril(a, -1)
    return lambda a: linalg.eigh(a, lower=lower, symmetrize_input=False), [(a + unread).astype(x.dtype)]


@covers("eig")
def eig(draw: Draw, name: str) -> Case:
    return lambda x: linalg.eig(x), [_matrix(draw, square=True)]


@covers("svd")
def svd(draw: Draw, name: str) -> Case:
    full, vectors = coin(draw), coin(draw)
    return lambda x: linalg.svd(x, full_matrices=full, compute_uv=vectors), [_matrix(draw)]


@covers("schur")
def schur(draw: Draw, name: str) -> Case:
    return lambda x: linalg.schur(x), [_positive(draw, complex_too=False)]


@covers("hessenberg")
def hessenberg(draw: Draw, name: str) -> Case:
    return public("hessenberg", linalg), [_matrix(draw, square=True, complex_too=False)]


@covers("tridiagonal")
def tridiagonal(draw: Draw, name: str) -> Case:
    lower = coin(draw)
    return lambda x: linalg.tridiagonal(x, lower=lower), [_positive(draw, complex_too=False)]


@covers("tridiagonal_solve")
def tridiagonal_solve(draw: Draw, name: str) -> Case:
    n, columns = one_of(draw, 1, 2, 3, 7), one_of(draw, 1, 2)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lower, upper, b = rng.uniform(-1, 1, n), rng.uniform(-1, 1, n), rng.standard_normal((n, columns))
    lower[0] = upper[-1] = 0
    arrays = [x.astype(np.float32) for x in (lower, rng.uniform(3, 4, n), upper, b)]
    return linalg.tridiagonal_solve, arrays


@covers("cholesky_update")
def cholesky_update(draw: Draw, name: str) -> Case:
    function, n = public("cholesky_update", linalg), one_of(draw, 1, 3, 5)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    r = np.triu(rng.uniform(-1, 1, (n, n))) + 3 * np.eye(n)
    return function, [r.astype(np.float32), rng.standard_normal(n).astype(np.float32)]


@covers("symmetric_product")
def symmetric_product(draw: Draw, name: str) -> Case:
    function = public("symmetric_product", linalg)
    a, alpha, beta = _matrix(draw, complex_too=False), one_of(draw, 1.0, -2.0), one_of(draw, 0.0, 0.5)
    c = np.asarray(a @ np.swapaxes(a, -1, -2), a.dtype)
    return lambda a, c: function(a, c, alpha=alpha, beta=beta, symmetrize_output=True), [a, c]


@covers("ormqr")
def ormqr(draw: Draw, name: str) -> Case:
    function = public("ormqr", linalg)
    x = _matrix(draw, complex_too=False)
    x = x if x.shape[-2] >= x.shape[-1] else np.swapaxes(x, -1, -2)
    taus = (2 / (1 + np.sum(np.tril(x, -1) ** 2, axis=-2))).astype(x.dtype)
    left, transpose = coin(draw), coin(draw)
    c = np.broadcast_to(np.eye(x.shape[-2], dtype=x.dtype), (*x.shape[:-2], x.shape[-2], x.shape[-2]))
    return lambda a, t, c: function(a, t, c, left=left, transpose=transpose), [x, taus, c]
