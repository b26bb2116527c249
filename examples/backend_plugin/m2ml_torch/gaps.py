"""What this backend does not do, each with its reason: refused before a program runs, shown by the support table."""

from __future__ import annotations

import m2ml

_REASONS = {
    "PyTorch has no such function": """cholesky_update igamma_grad_a random_gamma random_gamma_grad
        regularized_incomplete_beta symmetric_product""",
    "PyTorch has it, this example has no rule for it": """approx_top_k cholesky eig eigh eq_to fft hessenberg
        householder_product igamma igammac le_to lt_to lu lu_pivots_to_permutation mulhi ormqr polygamma qr
        ragged_dot_general reduce_precision rng_bit_generator scaled_dot schur select_and_gather_add svd
        triangular_solve tridiagonal tridiagonal_solve zeta""",
    "its body would run once per element": "reduce reduce_window",
}

GAPS: tuple[m2ml.Gap, ...] = tuple(
    m2ml.Gap(name, "*", reason) for reason, names in _REASONS.items() for name in names.split()
)
