"""How large the rounding error of one equation is in a correct engine, per element, from the arithmetic.

A sum grows with its number of terms, a factorisation's error is relative to its largest element, and that of a library
function is in `m2ml.equivalence.functions`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.functions import FUNCTION_UNITS, function_scale
from m2ml.equivalence.rounding import COMPLEX_ROUNDED, EXACT, ROUNDED, SUMS, terms, tiny, unit
from m2ml.interpreter import Equation

Array = np.ndarray[Any, Any]

#: Most bytes of error scales that are kept from one perturbed run to the next.
REMEMBERED = 1 << 28


def error_scale(
    equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array], rule: Callable[..., Sequence[Array]]
) -> list[Array | None]:
    """Per output, the size of its rounding error per element in a correct engine; None where it is exact.

    ``inputs`` and ``outputs`` are the reference's float64 values; ``rule(*inputs)`` evaluates the equation.
    A sum of n terms x is charged ``u sqrt(n) max(|sum x|, sqrt(sum x^2))``, the growth of a sequential sum whose
    rounding errors are independent (Higham and Mary, 2019).
    """
    units = [unit(aval.dtype) for aval in equation.outputs]
    if equation.name == "scaled_dot":  # the scaled operands are rounded to their own dtype before they are multiplied
        units = [max(unit(aval.dtype) for aval in (*equation.inputs, *equation.outputs))]
    exact = equation.name in EXACT and not (equation.name in COMPLEX_ROUNDED and np.iscomplexobj(inputs[0]))
    if exact or equation.name in CONTROL_FLOW or not any(units):
        return [None] * len(outputs)
    if equation.name == "convert_element_type" and unit(equation.inputs[0].dtype) >= units[0]:
        narrower = tiny(equation.dtype) > tiny(equation.inputs[0].dtype)  # bfloat16 overflows and vanishes in float16
        return [np.zeros(outputs[0].shape) if narrower else None]
    if equation.name in SUMS:
        sums = zip(range(len(outputs)), units, outputs, strict=True)
        return [_sum_scale(equation, inputs, y, u, lambda *xs, i=i: rule(*xs)[i]) if u else None for i, u, y in sums]
    each = zip(range(len(outputs)), units, outputs, strict=True)
    return [_scale(equation, inputs, y, u, lambda *xs, i=i: rule(*xs)[i]) if u else None for i, u, y in each]


def _scale(equation: Equation, inputs: Sequence[Array], output: Array, u: float, rule: Callable[..., Array]) -> Array:
    if equation.name in ROUNDED:
        return np.asarray((FUNCTION_UNITS if np.iscomplexobj(output) else 1.0) * u * np.abs(output))
    if equation.name == "multiply_add":  # rounded once, or twice by an engine without the rule
        return np.asarray(u * (np.abs(inputs[0] * inputs[1]) + np.abs(output)))
    if equation.name in NORMWISE:
        size = np.abs(output)
        finite = size[np.isfinite(size)]
        order = math.sqrt(max(equation.inputs[0].shape[-1:] or (1,)))
        return np.full_like(size, FUNCTION_UNITS * u * order * (finite.max() if finite.size else 0.0))
    return function_scale(equation, inputs, output, u, rule)


#: Factorisations and transforms: errors are relative to the largest element.
NORMWISE = frozenset(
    """cholesky cholesky_update eig eigh eigh_jacobi geqp3 geqrf hessenberg householder_product lu ormqr qr schur svd
    symmetric_product symmetric_update triangular_solve tridiagonal tridiagonal_solve""".split()
)


def _sum_scale(
    equation: Equation, inputs: Sequence[Array], output: Array, u: float, rule: Callable[..., Array]
) -> Array | None:
    count = terms(equation)
    growth = u * math.sqrt(max(count, 1))
    size = np.abs(output)
    if equation.name in ("cumprod", "reduce_prod", "scatter_mul", "cumlogsumexp", "reduce"):
        return np.asarray(growth * FUNCTION_UNITS * np.maximum(size, 1.0 if equation.name == "cumlogsumexp" else 0.0))
    if equation.name == "fft":
        return np.full_like(size, growth * (np.sqrt(np.mean(size**2)) if size.size else 0.0) * FUNCTION_UNITS)
    squares = [_square(x) for x in inputs]
    if equation.name == "select_and_scatter_add":
        squares[1] = inputs[1]
    with np.errstate(all="ignore"):
        return np.asarray(growth * np.sqrt(np.maximum(np.abs(rule(*squares)), size * size)))


def _square(x: Array) -> Array:
    return np.square(np.abs(x) if x.dtype.kind == "c" else x) if x.dtype.kind in "fc" else x


def finite_scales(
    equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array], rule: Callable[..., Sequence[Array]]
) -> list[Array | None]:
    """`error_scale`, and 0 where the result is no finite number: it stays what it is."""
    scales = error_scale(equation, inputs, outputs, rule)
    return [s if s is None else _where_finite(y, s) for y, s in zip(outputs, scales, strict=True)]


def _where_finite(output: Array, scale: Array) -> Array:
    finite = np.isfinite(output)
    return scale if finite.all() else np.where(finite, scale, 0.0)


class Scales:
    """Error scales that were worked out in one perturbed run, for the next ones: they differ by roundings only.

    Kept are those that cost more than a pass over the result, up to `REMEMBERED` bytes; `again` begins another run.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Equation, list[Array | None]]] = {}
        self._calls: Counter[int] = Counter()
        self._bytes = 0

    def again(self) -> None:
        """The next calls are those of another run of the same program."""
        self._calls.clear()

    def of(
        self,
        equation: Equation,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        rule: Callable[..., Sequence[Array]],
    ) -> list[Array | None]:
        """`finite_scales`, or what it was when this equation ran the same number of times before."""
        key = id(equation), self._calls[id(equation)]
        self._calls[id(equation)] += 1
        if key not in self._known:
            scales = finite_scales(equation, inputs, outputs, rule)
            size = sum(s.nbytes for s in scales if s is not None)
            if self._bytes + size > REMEMBERED:
                return scales
            self._known[key], self._bytes = (equation, scales), self._bytes + size
        return self._known[key][1]
