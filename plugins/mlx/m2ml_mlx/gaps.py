"""What MLX has nothing for: it runs on the CPU through JAX, with a warning, and not with ``strict``."""

from __future__ import annotations

from m2ml.backend import Gap

_SPECIAL = "igamma igamma_grad_a igammac polygamma random_gamma random_gamma_grad regularized_incomplete_beta zeta"
_LINEAR_ALGEBRA = "cholesky_update eigh_jacobi geqp3 geqrf hessenberg ormqr schur symmetric_product tridiagonal"
_RANDOM = "philox2x32 philox4x32 threefry4x32"
_OTHER = "ragged_dot ragged_dot_general scaled_dot select_and_scatter symmetric_update"

_PRIMITIVES = f"{_SPECIAL} {_LINEAR_ALGEBRA} {_RANDOM} {_OTHER}".split()

GAPS: tuple[Gap, ...] = (
    *(Gap(name, "*", "runs on the CPU through JAX") for name in _PRIMITIVES),
    *(Gap(name, "complex64", "MLX factorises real matrices only") for name in ("lu", "qr")),
    Gap("reduce_window", "*", "windows of more than 256 elements with a function of their own", case="grad(*_1_1600_*"),
    Gap("eig", "*", "MLX orders eigenvalues in its own way beside their vectors", case="*eigenvectors_True*"),
)
