"""Factorisations satisfy the equations that define them, to the accuracy of float64, whatever signs they choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from m2ml_reference.engine import ReferenceBackend

from m2ml import compat
from m2ml.program import Program

Array = np.ndarray[Any, Any]
SHAPES = [(1, 1), (4, 4), (2, 3, 3), (7, 3), (3, 7), (2, 2, 5, 3)]
SQUARE = [shape for shape in SHAPES if shape[-1] == shape[-2]]


def exact(function: Callable[..., Any], *args: Array) -> list[Array]:
    closed, out_tree, donated = compat.trace(jax.jit(function), args, {})
    return ReferenceBackend().run_exact(
        Program("linalg", closed, jax.tree.structure((args, {})), out_tree, donated), args
    )


def matrix(shape: tuple[int, ...], dtype: type = np.float32) -> Array:
    generator = np.random.default_rng(shape)
    values = generator.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * generator.normal(size=shape)
    return values.astype(dtype)


def close(got: Array, want: Array) -> None:
    """Equal up to the growth of float64 rounding through a factorisation: size cubed units of the largest element."""
    size = max(*got.shape[-2:], 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=size**3 * 2.0**-52 * max(np.abs(want).max(), 1))


def adjoint(x: Array) -> Array:
    return np.conj(np.swapaxes(x, -1, -2))


def unitary(q: Array) -> None:
    close(adjoint(q) @ q, np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], q.shape[-1], q.shape[-1])))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_svd(shape: tuple[int, ...], full: bool, dtype: type) -> None:
    a = matrix(shape, dtype)
    values, left, right = exact(
        lambda a: lax.linalg.svd(a, full_matrices=full)[1::-1] + lax.linalg.svd(a, full_matrices=full)[2:], a
    )
    count = min(shape[-2:])
    close(left[..., :count] * values[..., None, :] @ right[..., :count, :], a.astype(np.complex128))
    unitary(left)
    unitary(adjoint(right))
    assert (np.diff(values) <= 0).all()
    assert (values >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SQUARE)
def test_eigh(shape: tuple[int, ...], dtype: type) -> None:
    a = matrix(shape, dtype)
    a = (a + adjoint(a)) / 2
    vectors, values = exact(lambda a: lax.linalg.eigh(a, symmetrize_input=False), a)
    close(a.astype(np.complex128) @ vectors, vectors * values[..., None, :])
    unitary(vectors)
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SQUARE)
def test_eig(shape: tuple[int, ...], dtype: type) -> None:
    a = matrix(shape, dtype)
    values, left, right = exact(lax.linalg.eig, a)
    close(a.astype(np.complex128) @ right, right * values[..., None, :])
    close(adjoint(left) @ a.astype(np.complex128), values[..., :, None] * adjoint(left))
    np.testing.assert_allclose(np.linalg.norm(right, axis=-2), 1, rtol=right.shape[-2] * 2.0**-52)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_qr(shape: tuple[int, ...], full: bool, dtype: type) -> None:
    a = matrix(shape, dtype)
    q, r = exact(lambda a: lax.linalg.qr(a, full_matrices=full), a)
    close(q @ r, a.astype(np.complex128))
    unitary(q)
    np.testing.assert_array_equal(r, np.triu(r))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SHAPES)
def test_lu(shape: tuple[int, ...], dtype: type) -> None:
    a = matrix(shape, dtype)
    factors, pivots, order = exact(lax.linalg.lu, a)
    count = min(shape[-2:])
    lower = np.tril(factors, -1)[..., :count] + np.eye(shape[-2], count)
    close(lower @ np.triu(factors)[..., :count, :], np.take_along_axis(a, order[..., None], -2).astype(np.complex128))
    assert (pivots >= np.arange(count)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SQUARE)
def test_cholesky_and_schur(shape: tuple[int, ...], dtype: type) -> None:
    a = matrix(shape, dtype)
    positive = a @ adjoint(a) + np.eye(shape[-1], dtype=dtype)
    positive = (positive + adjoint(positive)) / 2
    (lower,) = exact(lambda a: lax.linalg.cholesky(a, symmetrize_input=False), positive)
    np.testing.assert_array_equal(lower, np.tril(lower))
    close(np.tril(lower @ adjoint(lower)), np.tril(positive).astype(np.complex128))
    form, vectors = exact(lax.linalg.schur, a)
    unitary(vectors)
    close(vectors @ form @ adjoint(vectors), a.astype(np.complex128))


def test_a_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    good, bad = np.eye(3, dtype=np.float32), -np.eye(3, dtype=np.float32)
    (lower,) = exact(lambda a: lax.linalg.cholesky(a), np.stack([good, bad]))
    np.testing.assert_array_equal(lower[0], good)
    assert np.isnan(lower[1][np.tril_indices(3)]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("left_side", [True, False])
def test_triangular_solve(left_side: bool, lower: bool, dtype: type) -> None:
    a, b = matrix((2, 4, 4), dtype) + 4 * np.eye(4, dtype=dtype), matrix((2, 4, 4), dtype)
    triangle = np.tril(a) if lower else np.triu(a)
    for operand, options in (
        (triangle, {}),
        (np.swapaxes(triangle, 1, 2), {"transpose_a": True}),
        (np.conj(triangle), {"conjugate_a": True}),
        (adjoint(triangle), {"transpose_a": True, "conjugate_a": True}),
    ):
        (x,) = exact(
            lambda a, b, o=options: lax.linalg.triangular_solve(a, b, left_side=left_side, lower=lower, **o), a, b
        )
        close(operand @ x if left_side else x @ operand, b.astype(np.complex128))


def test_a_zero_on_the_diagonal_divides_by_zero() -> None:
    a, b = np.array([[1, 0], [0, 0]], np.float32), np.array([[1], [2]], np.float32)
    (x,) = exact(lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True), a, b)
    np.testing.assert_array_equal(x, [[1], [np.inf]])


def test_tridiagonal_solve() -> None:
    lower, diagonal, upper = (
        np.array([0, 1, 2], np.float32),
        np.array([5, 6, 7], np.float32),
        np.array([3, 4, 0], np.float32),
    )
    b = matrix((3, 2))
    (x,) = exact(lax.linalg.tridiagonal_solve, lower, diagonal, upper, b)
    dense = np.diag(diagonal) + np.diag(lower[1:], -1) + np.diag(upper[:-1], 1)
    close(dense @ x, b.astype(np.float64))


def test_hessenberg_and_householder_product() -> None:
    a = matrix((5, 5))
    form, scales = exact(lax.linalg.hessenberg, a)
    (q,) = exact(lax.linalg.householder_product, *(x.astype(np.float32) for x in (form[1:, :-1], scales)))
    whole = np.eye(5)
    whole[1:, 1:] = q
    middle = whole.T @ a @ whole
    np.testing.assert_allclose(middle, np.triu(form, -1), atol=5**3 * 2.0**-23 * np.abs(a).max())


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_tridiagonal_keeps_the_eigenvalues(dtype: type) -> None:
    a = matrix((5, 5), dtype)
    a = a + adjoint(a)
    _, diagonal, off, _ = exact(lambda a: lax.linalg.tridiagonal(a, lower=True), a)
    dense = np.diag(diagonal) + np.diag(off, -1) + np.diag(np.conj(off), 1)
    close(np.linalg.eigvalsh(dense)[None], np.linalg.eigvalsh(a.astype(np.complex128))[None])
