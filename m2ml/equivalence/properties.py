"""Factorisations that are unique only up to signs, phases or order: held to what defines them instead.

Each property gives pairs that must be equal in exact arithmetic. A backward stable algorithm makes them equal up to
``c n u`` times the size of the matrix (Higham, Accuracy and Stability of Numerical Algorithms, 19 and 10), where the
constant is `FUNCTION_UNITS`, as for every library function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.equivalence.functions import FUNCTION_UNITS
from m2ml.interpreter import Equation

Array = np.ndarray[Any, Any]
#: What is compared, the value that the outputs give, and the value that it should have.
Property = tuple[str, Array, Array]


def _adjoint(x: Array) -> Array:
    return np.conj(np.swapaxes(x, -1, -2))


def _identity(x: Array) -> Property:
    """The columns of ``x`` are orthonormal."""
    product = _adjoint(x) @ x
    return "orthonormal columns", product, np.broadcast_to(np.eye(x.shape[-1]), product.shape)


def _cholesky(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    """What stands above the diagonal is left open; jax.lax.linalg.cholesky clears it."""
    lower = np.tril(outputs[0])
    return [("L Lᴴ = A", np.tril(lower @ _adjoint(lower)), np.tril(inputs[0]))]


def _eigh(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    vectors, values = outputs
    half = np.tril(inputs[0], -1) if equation.params["lower"] else _adjoint(np.triu(inputs[0], 1))
    diagonal = np.real(np.diagonal(inputs[0], axis1=-2, axis2=-1))
    matrix = half + _adjoint(half) + diagonal[..., None] * np.eye(half.shape[-1])
    rebuilt = (vectors * values[..., None, :]) @ _adjoint(vectors)
    return [("V W Vᴴ = A", rebuilt, matrix), _identity(vectors), ("ascending", np.sort(values), values)]


def _eig(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    values, matrix, pairs = outputs[0][..., None, :], inputs[0], list(outputs[1:])
    found: list[Property] = []
    if equation.params["compute_left_eigenvectors"]:
        left = pairs.pop(0)
        found.append(("Aᴴ U = U W̄", _adjoint(matrix) @ left, left * np.conj(values)))
    if equation.params["compute_right_eigenvectors"]:
        right = pairs.pop(0)
        found.append(("A V = V W", matrix @ right, right * values))
    return [
        *found,
        *(("unit columns", np.linalg.norm(x, axis=-2), np.ones(x.shape[:-2] + x.shape[-1:])) for x in pairs),
    ]


def _svd(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    if not equation.params["compute_uv"]:
        return [("singular values", outputs[0], np.linalg.svd(inputs[0], compute_uv=False))]
    values, u, v = outputs
    rank = values.shape[-1]
    rebuilt = (u[..., :rank] * values[..., None, :]) @ v[..., :rank, :]
    descending = -np.sort(-values, axis=-1)
    return [("U S Vᴴ = A", rebuilt, inputs[0]), _identity(u), _identity(_adjoint(v)), ("order", descending, values)]


def _qr(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    q, r = outputs[:2]
    return [("Q R = A", q @ r, inputs[0]), _identity(q), ("R is triangular", np.triu(r), r)]


def _schur(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    if not equation.params["compute_schur_vectors"]:
        return []
    t, z = outputs
    return [("Z T Zᴴ = A", z @ t @ _adjoint(z), inputs[0]), _identity(z), ("T is triangular", np.triu(t, -1), t)]


def _reflections(packed: Array, taus: Array, *, lower: bool) -> Array:
    """The product of the reflections ``1 - tau v vᴴ`` packed outside the reduced matrix (LAPACK ?ORGTR)."""
    n = packed.shape[-1]
    product = np.broadcast_to(np.eye(n), packed.shape).astype(packed.dtype)
    for i in range(n - 1) if lower else range(n - 2, -1, -1):
        v = np.zeros((*packed.shape[:-1], 1), packed.dtype)
        v[..., i + 1 if lower else i, 0] = 1
        inside = slice(i + 2, None) if lower else slice(0, i)
        v[..., inside, 0] = packed[..., inside, i if lower else i + 1]
        product = product - product @ (taus[..., i, None, None] * v @ _adjoint(v))
    return product


def _hessenberg(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    packed, taus = outputs
    q = _reflections(packed, taus, lower=True)
    return [("Q H Qᴴ = A", q @ np.triu(packed, -1) @ _adjoint(q), inputs[0]), _identity(q)]


def _tridiagonal(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Property]:
    packed, diagonal, beside, taus = outputs[:4]
    q = _reflections(packed, taus, lower=equation.params["lower"])
    n = packed.shape[-1]
    t = diagonal[..., None] * np.eye(n)
    t[..., range(n - 1), range(1, n)] += beside
    t[..., range(1, n), range(n - 1)] += np.conj(beside)
    return [("Q T Qᴴ = A", q @ t @ _adjoint(q), inputs[0]), _identity(q)]


PROPERTIES: dict[str, Callable[[Equation, Sequence[Array], Sequence[Array]], list[Property]]] = {
    "cholesky": _cholesky,
    "eig": _eig,
    "eigh": _eigh,
    "hessenberg": _hessenberg,
    "qr": _qr,
    "schur": _schur,
    "svd": _svd,
    "tridiagonal": _tridiagonal,
}


@dataclass(frozen=True)
class Held:
    """A property of a factorisation, worked out in float64: how far it is from holding, and how far it may be."""

    said: str
    distance: Array
    allowed: float

    @property
    def ok(self) -> bool:
        return bool(np.max(self.distance, initial=0.0) <= self.allowed)  # False for NaN


def properties(equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array], u: float) -> list[Held]:
    """What defines the factorisation of ``equation``, measured on ``outputs`` of a dtype with rounding unit ``u``."""
    wide = [[x.astype(complex if x.dtype.kind == "c" else float) for x in arrays] for arrays in (inputs, outputs)]
    size = max(1.0, float(np.max(np.linalg.norm(wide[0][0], axis=(-2, -1)), initial=0.0)))
    allowed = FUNCTION_UNITS * max(inputs[0].shape[-2:]) * u * size
    return [Held(said, np.abs(got - want), allowed) for said, got, want in PROPERTIES[equation.name](equation, *wide)]


def assert_properties(
    what: str, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array], u: float
) -> None:
    """What defines the factorisation of ``equation`` holds for ``outputs``."""
    for held in properties(equation, inputs, outputs, u):
        assert held.ok, f"{what}: {held.said} fails by {np.max(held.distance):.3g}, allowed {held.allowed:.3g}"
