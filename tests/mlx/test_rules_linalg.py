"""Linear algebra and Fourier transforms on MLX.

A factorisation is judged by what it must satisfy, with the backward error bounds of Higham, "Accuracy and
Stability of Numerical Algorithms" (2nd ed.): gamma(n) = n u / (1 - n u), u the unit roundoff.
"""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from jax import lax
from jax.lax import linalg
from through_rules import assert_within, check_exact, sampled_harnesses, through_jax, through_rules, unit_roundoff, wide

from m2ml.errors import UnsupportedPrimitive

U = unit_roundoff(np.float32)
SHAPES = [(1, 1), (2, 2), (5, 5), (40, 40), (7, 4), (4, 7), (60, 9), (9, 60), (2, 3, 6, 5)]
SQUARE = [shape for shape in SHAPES if shape[-1] == shape[-2]] + [(3, 17, 17)]
EMPTY = [(0, 0), (2, 0, 0), (0, 3, 3)]


def matrix(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if dtype == np.complex64 else real).astype(dtype)


def gamma(n, dtype=np.float32):
    """Complex arithmetic costs at most four real roundings per operation (Higham, lemma 3.5)."""
    n *= 4 if dtype == np.complex64 else 1
    return n * U / (1 - n * U)


def conj_t(a):
    return np.conj(np.swapaxes(a, -1, -2))


def norm(a):
    return np.linalg.norm(a, axis=(-2, -1), keepdims=True)


def assert_orthonormal(q, roundings):
    """The columns of ``q``, to within the rounding of as many reflections."""
    q = wide(q)
    assert (np.abs(conj_t(q) @ q - np.eye(q.shape[-1])) <= gamma(roundings, np.complex64)).all()


def hermitian(shape, dtype):
    a = matrix(shape, dtype)
    return (a + conj_t(a)) / 2


def positive_definite(shape, dtype):
    """Hermitian to the last bit: a product in floating point need not be."""
    a = matrix(shape, dtype)
    lower = np.tril(a @ conj_t(a) + np.eye(shape[-1], dtype=dtype))
    return lower + conj_t(np.tril(lower, -1))


# Cholesky -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SQUARE)
def test_cholesky_reproduces_the_matrix(shape, dtype):
    a = positive_definite(shape, dtype)
    (factor,) = through_rules(functools.partial(linalg.cholesky, symmetrize_input=False), a)
    low = wide(factor)
    assert (np.triu(low, 1) == 0).all()
    assert (np.abs(low @ conj_t(low) - a) <= gamma(shape[-1] + 1, dtype) * (np.abs(low) @ np.abs(conj_t(low)))).all()
    assert (np.diagonal(low.real, axis1=-2, axis2=-1) > 0).all()


def test_cholesky_reads_the_lower_triangle():
    a = positive_definite((5, 5), np.float32)
    lower = np.tril(a) + np.triu(np.full_like(a, np.nan), 1)
    fn = functools.partial(linalg.cholesky, symmetrize_input=False)
    np.testing.assert_array_equal(through_rules(fn, a), through_rules(fn, lower))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("size", [1, 3, 40])
def test_cholesky_of_what_is_not_positive_definite_is_nan(size, dtype):
    good, indefinite = np.eye(size, dtype=dtype), np.eye(size, dtype=dtype)
    indefinite[-1, -1] = -1
    (got,) = through_rules(linalg.cholesky, np.stack([good, indefinite, 0 * good, np.nan * good]))
    assert (got[0] == good).all()
    lower = np.tril_indices(size)
    assert np.isnan(got[1:3][:, *lower]).all()
    assert np.isnan(got[3][lower]).any()


# LU -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_lu_pivots_like_jax(shape):
    a = matrix(shape)
    got, want = through_rules(linalg.lu, a), through_jax(linalg.lu, a)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[2], want[2])
    rank = min(shape[-2:])
    low = np.tril(wide(got[0]), -1)[..., :rank] + np.eye(shape[-2], rank)
    up = np.triu(wide(got[0]))[..., :rank, :]
    permuted = np.take_along_axis(a, got[2][..., None].astype(int), axis=-2)
    assert (np.abs(low @ up - permuted) <= gamma(rank) * (np.abs(low) @ np.abs(up))).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 0, 3), (2, 3, 0), (0, 3, 3)])
def test_lu_of_nothing(shape):
    check_exact(linalg.lu, np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(1,), (6,), (13,), (2, 3, 5), (0,)])
def test_pivots_as_a_permutation(shape):
    rng = np.random.default_rng(0)
    size = shape[-1] + 2
    pivots = rng.integers(np.arange(shape[-1]), size, shape).astype(np.int32)
    check_exact(lambda p: linalg.lu_pivots_to_permutation(p, size), pivots)


# QR -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_qr_reproduces_the_matrix(shape, full):
    a = matrix(shape)
    q, r = through_rules(lambda a: linalg.qr(a, full_matrices=full), a)
    roundings = 12 * math.prod(shape[-2:])
    assert (np.tril(r, -1) == 0).all()
    assert (np.abs(wide(q) @ wide(r) - a) <= gamma(roundings) * norm(wide(a))).all()
    assert_orthonormal(q, roundings)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize(("shape", "count"), [((5, 5), 5), ((6, 4), 4), ((6, 4), 2), ((2, 7, 3), 3), ((4, 4), 0)])
def test_householder_product_is_that_of_jax(shape, count, dtype):
    a = matrix(shape, dtype)
    below = np.tril(a, -1)[..., :count]
    taus = (2 / (1 + np.sum(np.abs(below) ** 2, axis=-2))).astype(dtype)
    if count:
        taus[..., -1] = 0
    (got,), (want,) = (
        through_rules(linalg.householder_product, a, taus),
        through_jax(linalg.householder_product, a, taus),
    )
    assert_within(got, want, 2 * gamma(12 * math.prod(shape[-2:]), dtype))


# Eigenvalues and singular values --------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SQUARE)
def test_eigh_diagonalises(shape, dtype, lower):
    a = hermitian(shape, dtype)
    half = np.tril(a) if lower else np.triu(a)
    vectors, values = through_rules(lambda a: linalg.eigh(a, lower=lower, symmetrize_input=False), half)
    v, w = wide(vectors), wide(values)[..., None, :]
    roundings = 12 * shape[-1] ** 2
    assert (np.abs(a @ v - v * w) <= gamma(roundings, dtype) * norm(a)).all()
    assert (np.diff(values) >= 0).all()
    assert_orthonormal(vectors, roundings)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_reproduces_the_matrix(shape, dtype, full):
    a = matrix(shape, dtype)
    u, s, vt = through_rules(lambda a: linalg.svd(a, full_matrices=full), a)
    rank, roundings = min(shape[-2:]), 12 * math.prod(shape[-2:])
    product = (wide(u)[..., :rank] * wide(s)[..., None, :]) @ wide(vt)[..., :rank, :]
    assert (np.abs(product - a) <= gamma(roundings, dtype) * norm(a)).all()
    assert (np.diff(s) <= 0).all()
    assert (s >= 0).all()
    assert_orthonormal(u, roundings)
    assert_orthonormal(conj_t(vt), roundings)
    (alone,) = through_rules(lambda a: linalg.svd(a, compute_uv=False), a)
    assert_within(alone, s, 2 * gamma(roundings, dtype) * norm(a)[..., 0])


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_eigenvalues_come_in_the_order_of_jax(dtype):
    fn = functools.partial(linalg.eig, compute_left_eigenvectors=False, compute_right_eigenvectors=False)
    a = matrix((2, 6, 6), dtype)
    (got,), (want,) = through_rules(fn, a), through_jax(fn, a)
    # Each moves by the backward error times its condition number, 1 / |cosine of its two eigenvectors|.
    values, right = np.linalg.eig(wide(a))
    left = conj_t(np.linalg.inv(right))
    condition = np.linalg.norm(left, axis=-2) * np.linalg.norm(right, axis=-2)
    order = np.argmin(np.abs(wide(want)[..., None] - values[..., None, :]), axis=-1)
    assert_within(got, want, 2 * gamma(12 * 36, dtype) * norm(a)[..., 0] * np.take_along_axis(condition, order, -1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "fn", [linalg.eigh, linalg.svd, functools.partial(linalg.svd, compute_uv=False)], ids=["eigh", "svd", "values"]
)
def test_what_lapack_rejects_is_nan_and_its_neighbours_are_not(fn, bad):
    a = np.stack([np.eye(3, dtype=np.float32), np.full((3, 3), bad, np.float32)])
    for out in through_rules(fn, a):
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[1]).all()


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize(
    "fn",
    [linalg.cholesky, linalg.qr, linalg.eigh, linalg.svd, lambda a: linalg.svd(a, full_matrices=False)],
    ids=["cholesky", "qr", "eigh", "svd", "thin svd"],
)
def test_factorising_nothing(fn, shape):
    check_exact(fn, np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("full", [True, False])
def test_the_factors_of_an_empty_matrix_are_orthonormal(shape, full):
    check_exact(lambda a: linalg.svd(a, full_matrices=full), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda a: linalg.eig(a), "orders eigenvalues in its own way"),
        (lambda a: linalg.eigh(a, subset_by_index=(0, 2)), "all eigenvalues or none"),
        (lambda a: linalg.qr(a.astype(np.complex64)), "real matrices without pivoting"),
        (lambda a: linalg.lu(a.astype(np.complex64)), "real matrices only"),
    ],
)
def test_what_mlx_lacks_is_refused_with_its_reason(fn, reason):
    with pytest.raises(UnsupportedPrimitive, match=reason):
        through_rules(fn, matrix((4, 4)))


# Linear systems -------------------------------------------------------------------------------------


def triangular_residual_bound(a, x):
    """|b - T x| for a triangle that is inverted in leaves of 16 and substituted between them (Higham, 14.2.1)."""
    inverse = np.abs(np.linalg.inv(a))
    return np.abs(a) @ inverse @ np.abs(a) @ np.abs(x)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("size", [1, 2, 16, 17, 45])
@pytest.mark.parametrize(("left", "lower", "transpose"), [*itertools.product([True, False], repeat=3)])
def test_triangular_systems(size, left, lower, transpose, dtype):
    a = matrix((2, size, size), dtype) / size + np.eye(size, dtype=dtype)
    b = matrix((2, size, 3) if left else (2, 3, size), dtype, seed=1)
    for conjugate, unit in itertools.product([False, True], repeat=2):
        (x,) = through_rules(
            lambda a, b, conjugate=conjugate, unit=unit: linalg.triangular_solve(
                a, b, left_side=left, lower=lower, transpose_a=transpose, conjugate_a=conjugate, unit_diagonal=unit
            ),
            a,
            b,
        )
        t = wide(np.tril(a) if lower else np.triu(a))
        t = np.where(np.eye(size, dtype=bool), 1, t) if unit else t
        t = np.swapaxes(t, -1, -2) if transpose else t
        t = np.conj(t) if conjugate else t
        t, y, right = (
            (t, wide(x), b) if left else (np.swapaxes(t, -1, -2), np.swapaxes(wide(x), -1, -2), np.swapaxes(b, -1, -2))
        )
        assert (np.abs(t @ y - right) <= gamma(2 * size + 8, dtype) * triangular_residual_bound(t, y)).all()


def test_the_other_triangle_is_not_read():
    a, b = matrix((20, 20)) / 20 + np.eye(20, dtype=np.float32), matrix((20, 2), seed=1)
    fn = functools.partial(linalg.triangular_solve, left_side=True, lower=True)
    np.testing.assert_array_equal(through_rules(fn, a, b), through_rules(fn, np.where(np.tri(20) > 0, a, np.nan), b))


def test_a_zero_on_the_diagonal_is_not_finite():
    a, b = np.diag(np.array([2, 0, 4], np.float32)), np.ones((3, 1), np.float32)
    (got,) = through_rules(functools.partial(linalg.triangular_solve, left_side=True, lower=True), a, b)
    assert got[0] == 0.5
    assert not np.isfinite(got[1])


@pytest.mark.parametrize("shape", [(0, 0), (3, 3)])
def test_triangular_systems_without_right_hand_sides(shape):
    fn = functools.partial(linalg.triangular_solve, left_side=True, lower=True)
    check_exact(fn, np.eye(*shape, dtype=np.float32), np.zeros((shape[0], 0), np.float32))


def test_solve_inverse_and_determinant():
    a, b = matrix((2, 20, 20)), matrix((2, 20, 3), seed=1)
    condition = np.linalg.cond(wide(a))[:, None, None]

    def check(fn, *args, scale):
        (got,), (want,) = through_rules(fn, *args), through_jax(fn, *args)
        assert_within(got, want, 2 * gamma(12 * 20**2) * condition * scale)

    x = np.linalg.solve(wide(a), b)
    check(jax.numpy.linalg.solve, a, b, scale=norm(x))
    check(jax.numpy.linalg.inv, a, scale=norm(np.linalg.inv(wide(a))))


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("size", [3, 5, 40])
def test_tridiagonal_systems(size, batch):
    below, main, above = (matrix((*batch, size), seed=seed) for seed in (1, 2, 3))
    main += 4 * np.sign(main)
    below[..., 0] = above[..., -1] = 0
    b = matrix((*batch, size, 2), seed=4)
    (x,) = through_rules(linalg.tridiagonal_solve, below, main, above, b)
    a = np.zeros((*batch, size, size))
    i = np.arange(size)
    a[..., i, i], a[..., i[1:], i[:-1]], a[..., i[:-1], i[1:]] = main, below[..., 1:], above[..., :-1]
    assert (np.abs(a @ wide(x) - b) <= gamma(4 * size) * (norm(a) * np.linalg.cond(a)[..., None, None] * norm(x))).all()


# Fourier transforms ---------------------------------------------------------------------------------


def fft_bound(x, lengths):
    """Each output sums every input once, rounded in a sum of p terms per prime factor p, by both sides."""
    axes = tuple(range(-len(lengths), 0))
    roundings = sum(p + 6 for n in lengths for p in _prime_factors(n))
    return 2 * gamma(roundings, np.complex64) * np.sum(np.abs(x), axis=axes, keepdims=True)


def _prime_factors(n):
    p = 2
    while n > 1:
        while n % p == 0:
            yield p
            n //= p
        p += 1


@pytest.mark.parametrize("lengths", [(1,), (2,), (8,), (9,), (17,), (30,), (4, 9), (3, 1, 5)])
def test_fourier_transforms(lengths):
    x = matrix((2, *lengths), np.complex64)
    half = matrix((2, *lengths[:-1], lengths[-1] // 2 + 1), np.complex64)
    cases = (
        (lax.FftType.FFT, x, 1),
        (lax.FftType.IFFT, x, 1 / math.prod(lengths)),
        (lax.FftType.RFFT, x.real, 1),
        (lax.FftType.IRFFT, half, 2 / math.prod(lengths)),
    )
    for kind, array, scale in cases:
        fn = functools.partial(lax.fft, fft_type=kind, fft_lengths=lengths)
        (got,), (want,) = through_rules(fn, array), through_jax(fn, array)
        assert_within(got, want, scale * fft_bound(array, lengths))


def test_fourier_transforms_of_nothing():
    check_exact(lambda x: lax.fft(x, lax.FftType.FFT, (4,)), np.zeros((0, 4), np.complex64))
    check_exact(lambda x: lax.fft(x, lax.FftType.RFFT, (5,)), np.zeros((0, 5), np.float32))
    check_exact(lambda x: lax.fft(x, lax.FftType.IRFFT, (6,)), np.zeros((0, 4), np.complex64))


@pytest.mark.parametrize("case", sampled_harnesses("fft", per_group=24), ids=lambda c: c.fullname[:80])
def test_jax_own_fourier_cases(case):
    args = case.dyn_args_maker(np.random.RandomState(0))
    (got,), (want,) = through_rules(case.dyn_fun, *args), through_jax(case.dyn_fun, *args)
    lengths = case.params["fft_lengths"]
    scale = 1 if case.params["fft_type"] in (lax.FftType.FFT, lax.FftType.RFFT) else 2 / math.prod(lengths)
    assert_within(got, want, scale * fft_bound(args[0], lengths))
