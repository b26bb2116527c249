"""How far a correct engine may be from the exact result: bounds that come from the arithmetic.

`error_scale` says how large the rounding error of one equation is, per element, in a correct implementation.
The bound of a whole program is measured, not derived: the reference runs it again with every equation's result
moved by its error scale in a random direction; the spread of the results is the program's own conditioning
(Monte Carlo arithmetic; D. S. Parker, 1997).

Where rounding or flushing can change an element to anything (a NaN, another integer), it is marked, not judged. What a
bound of a program does not see: the sign of a zero, and one wrong rounding; bounds of single equations see both.

The two errors, on a corpus of generated cases, their compositions, random programs and optimizers with 95% limits
(``benchmarks/study_bounds.py``): outside their bounds were 2 of 2,000 programs on MLX (0.01% to 0.36%) and 3 of 600 on
XLA's CPU (0.10% to 1.45%). Of 347 planted faults that change a program 332 were caught in at most 12 programs (93.0% to
97.6%). The cases of single equations catch more than 99% of planted faults (``benchmarks/study_mutants.py``).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from m2ml import compat
from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.functions import FUNCTION_UNITS, function_scale
from m2ml.equivalence.moves import blocks, held, move
from m2ml.interpreter import Equation

Array = np.ndarray[Any, Any]

#: Perturbed runs of the reference that measure a program's spread.
RUNS = 4

#: A result may be this many times the measured spread away: the spread of a few runs underestimates the worst case.
FACTOR = 8.0

#: Most bytes of error scales that are kept from one perturbed run to the next.
REMEMBERED = 1 << 28

#: Elements whose median spread stands for that of an output; a median needs no more.
SAMPLE = 1 << 16

#: Primitives whose result is one of their operands' values, or exact by IEEE 754: they add no rounding error.
EXACT = frozenset(
    """abs and argmax argmin bitcast_convert_type broadcast_in_dim ceil clamp clz complex concatenate conj
    copy_p cummax cummin dynamic_slice dynamic_update_slice empty eq eq_to expand_dims floor gather ge gt imag
    iota iota_2x32_shape is_finite le le_to lt lt_to max min ne neg nextafter not optimization_barrier or pad
    population_count real reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_window_max
    reduce_window_min reduce_xor rem reshape rev rng_bit_generator round scatter scatter_max scatter_min
    select_and_gather_add select_n shift_left shift_right_arithmetic shift_right_logical sign slice sort split
    squeeze stack threefry2x32 tile top_k transpose xor""".split()
)

#: Exact for real numbers, rounded for complex ones, whose size they work out.
_COMPLEX_ROUNDED = frozenset({"abs", "sign"})

#: Primitives correctly rounded by every engine, to half a unit in the last place; complex ones from rounded parts.
ROUNDED = frozenset("add add_any convert_element_type div mul neg sqrt square sub".split())

#: Those that move by a unit of their real result, whatever their operands.
_BY_A_UNIT = ROUNDED - EXACT - {"convert_element_type"}

#: Sums of products or values: the error grows with the number of terms.
SUMS = frozenset(
    """conv_general_dilated cumlogsumexp cumprod cumsum dot_general fft polynomial ragged_dot ragged_dot_general
    reduce_prod reduce_sum reduce_window reduce_window_sum reduce scaled_dot scatter_add scatter_mul scatter_sub
    select_and_scatter select_and_scatter_add""".split()
)


@functools.cache
def unit(dtype: Any) -> float:
    """Largest relative error of rounding to ``dtype``: half the gap above 1; 0 for integers and booleans."""
    dtype = np.dtype(dtype)
    if not compat.is_inexact(dtype):
        return 0.0
    return float(ml_dtypes.finfo(real_dtype(dtype)).eps) / 2


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of the parts of a complex dtype; any other dtype itself."""
    dtype = np.dtype(dtype)
    return np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype


@functools.cache
def tiny(dtype: Any) -> float:
    """Smallest normal number of a floating dtype: below it an engine may flush to zero."""
    return float(ml_dtypes.finfo(real_dtype(dtype)).tiny)


def _has_subnormal(x: Array, least: float) -> bool:
    flat = x.reshape(-1)
    for block in blocks(flat.size):
        small = np.abs(flat[block]) < least
        if small.any() and flat[block][small].any():
            return True
    return False


#: Primitives of one rounding or of sums: an engine that flushes sees a number or zero. The formulas of others halve
#: and double it on the way: zero may come of numbers up to a few times the least normal one.
ARITHMETIC = EXACT | ROUNDED | SUMS


def flushed(x: Array, dtype: Any, name: str) -> Array:
    """``x`` as an engine sees it in primitive ``name`` that takes subnormal numbers of ``dtype`` for zero.

    ``x`` itself where it has none. XLA's CPU does so in float32 and bfloat16, Metal may; MLX's CPU does not. No engine
    known does in float16, whose least normal number, 6e-5, is not small.
    """
    if not unit(dtype) or np.dtype(dtype) == np.float16:
        return x
    parts = (x.real, x.imag) if np.iscomplexobj(x) else (x,)
    least = tiny(dtype) * (1 if name in ARITHMETIC else 4)
    if not any(_has_subnormal(part, least) for part in parts):
        return x
    subnormal = [(np.abs(part) < least) & (part != 0) for part in parts]
    zeroed = [np.where(s, np.copysign(0.0, part), part) for s, part in zip(subnormal, parts, strict=True)]
    return np.asarray(zeroed[0] if len(zeroed) == 1 else np.stack(zeroed, -1).view(x.dtype)[..., 0])


#: Functions of complex numbers whose side of a branch cut XLA's CPU chooses with no regard to the sign of a zero.
CUT = frozenset("acos acosh asin asinh sqrt".split())


def other_inputs(equation: Equation, inputs: Sequence[Array]) -> Iterator[list[Array]]:
    """What an engine may take ``inputs``, the reference's values, for: subnormal numbers are zero, and zeros positive.

    The sign of a number that it takes for zero is kept by arithmetic; a formula may ask ``x < 0`` and find it is not.
    """
    seen = [flushed(x, aval.dtype, equation.name) for x, aval in zip(inputs, equation.inputs, strict=True)]
    changed = any(x is not y for x, y in zip(inputs, seen, strict=True))
    if changed:
        yield seen
    if (changed and equation.name not in ARITHMETIC) or on_a_cut(equation, inputs):
        yield [x + 0.0 if x.dtype.kind in "fc" else x for x in seen]


def on_a_cut(equation: Equation, inputs: Sequence[Array]) -> bool:
    """Whether an engine may ignore the signs of zeros."""
    return equation.name in CUT and np.iscomplexobj(inputs[0])


def terms(equation: Equation) -> int:
    """How many terms each output element of a sum-like equation adds or multiplies."""
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.inputs[0].shape[i] for i in contracted)
    if equation.name == "conv_general_dilated":
        kernel = equation.inputs[1].shape
        return math.prod(kernel) // max(kernel[equation.params["dimension_numbers"].rhs_spec[0]], 1)
    if equation.name.startswith("reduce_window"):
        return math.prod(equation.params["window_dimensions"])
    if equation.name.startswith("cum"):
        return int(equation.inputs[0].shape[equation.params["axis"]])
    if equation.name.startswith("scatter"):
        return max(math.prod(equation.inputs[2].shape), 1)
    return max(math.prod(equation.inputs[0].shape) // max(math.prod(equation.shape), 1), 1)


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
    exact = equation.name in EXACT and not (equation.name in _COMPLEX_ROUNDED and np.iscomplexobj(inputs[0]))
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
    floats = [np.abs(x) ** 2 if np.asarray(x).dtype.kind in "fc" else x for x in inputs]
    if equation.name == "select_and_scatter_add":
        floats = [np.abs(inputs[0]) ** 2, inputs[1]]
    with np.errstate(all="ignore"):
        rms = np.sqrt(np.abs(rule(*floats)))
        return np.asarray(growth * np.maximum(np.where(np.isfinite(size), size, 0.0), rms))


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
        """`error_scale`, or what it was when this equation ran the same number of times before."""
        if equation.name in EXACT | ROUNDED:
            return error_scale(equation, inputs, outputs, rule)
        key = id(equation), self._calls[id(equation)]
        self._calls[id(equation)] += 1
        if key not in self._known:
            scales = error_scale(equation, inputs, outputs, rule)
            # Where this run has a NaN another may have a number, once subnormal numbers are taken for zero.
            scales = [
                s if s is None else np.where(np.isfinite(y), s, 0.0) for y, s in zip(outputs, scales, strict=True)
            ]
            size = sum(s.nbytes for s in scales if s is not None)
            if self._bytes + size > REMEMBERED:
                return scales
            self._known[key], self._bytes = (equation, scales), self._bytes + size
        return self._known[key][1]


@dataclass(frozen=True)
class Perturbation:
    """Moves each equation's result by its error scale in a random direction: a hook for the reference engine.

    What it gives is rounded to the equation's dtype, as every engine holds it: numbers that become equal there, that
    overflow or that vanish do so here. With ``nearest`` a primitive that engines round correctly is rounded and not
    moved, so that what such a rounding decides (``x == y`` in bfloat16) is seen; and subnormal numbers are taken for
    zero, as by an engine that flushes them.
    """

    generator: np.random.Generator
    apply: Callable[[Equation, Sequence[Array]], Sequence[Array]]
    nearest: bool = False
    scales: Scales | None = None

    def __call__(self, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
        if self.nearest:
            inputs, outputs = self._flushed(equation, inputs, outputs)
        units = [unit(aval.dtype) for aval in equation.outputs]
        each = list(zip(outputs, units, equation.outputs, strict=True))
        if self.nearest and equation.name in ROUNDED:
            return [held(y, aval.dtype) if u else y for y, u, aval in each]
        if equation.name in _BY_A_UNIT and not any(map(np.iscomplexobj, outputs)):
            return [move(y, None, aval.dtype, self.generator, u) if u else y for y, u, aval in each]
        scale = self.scales.of if self.scales else error_scale
        scales = scale(equation, inputs, outputs, lambda *xs: self.apply(equation, xs))
        moved = zip(outputs, scales, equation.outputs, strict=True)
        return [y if s is None else move(y, s, aval.dtype, self.generator) for y, s, aval in moved]

    def _flushed(
        self, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        others = list(other_inputs(equation, inputs))
        if others:
            inputs = others[int(self.generator.integers(len(others)))]
            outputs = self.apply(equation, inputs)
        return inputs, outputs  # what reads them takes their subnormal numbers for zero


@dataclass(frozen=True)
class Bound:
    """What a correct engine may return for one output: ``expected`` in float64 and the distance allowed per element.

    ``unstable`` marks elements that rounding alone can change arbitrarily: a NaN in one run and not in another, or
    an integer that differs between runs. They are reported, not judged.
    """

    expected: Array
    allowed: Array
    unstable: Array
    dtype: np.dtype[Any]


def bound_of(dtype: Any, exact: Array, perturbed: Iterable[Array]) -> Bound:
    """The bound of one output from its exact value and its values in perturbed runs."""
    spread = Spread(dtype, exact)
    for run in perturbed:
        spread.add(run)
    return spread.bound()


class Spread:
    """How far perturbed runs move one output from its exact value; a run is let go of once it has been added."""

    def __init__(self, dtype: Any, exact: Array) -> None:
        self.dtype, self.exact = np.dtype(dtype), exact
        self.unstable = np.zeros(exact.shape, bool)
        self.spread = np.zeros(exact.shape) if unit(dtype) else None

    def add(self, run: Array) -> None:
        """Take one more perturbed run into account."""
        if self.spread is None:
            self.unstable |= run != self.exact
            return
        flat = [x.reshape(-1) for x in (run, self.exact, self.unstable, self.spread)]
        for block in blocks(self.exact.size):
            self._add(*(x[block] for x in flat))

    @staticmethod
    def _add(run: Array, exact: Array, unstable: Array, spread: Array) -> None:
        with np.errstate(all="ignore"):
            distance = np.abs(run - exact)
            if not np.isfinite(distance).all():
                same = (run == exact) | (np.isnan(run) & np.isnan(exact))
                unstable |= ~same & ~np.isfinite(distance)
                distance = np.where(same | ~np.isfinite(distance), 0.0, distance)
        np.maximum(spread, distance, out=spread)

    def bound(self) -> Bound:
        """The bound by the runs added so far."""
        if self.spread is None:
            return Bound(self.exact, np.zeros(self.exact.shape), self.unstable, self.dtype)
        allowed, typical = np.empty(self.exact.shape), self._typical()
        flat = [x.reshape(-1) for x in (self.exact, self.spread, allowed)]
        for block in blocks(self.exact.size):
            exact, spread, result = (x[block] for x in flat)
            size = np.where(np.isfinite(exact), np.abs(exact), 0.0)
            result[:] = FACTOR * np.maximum(spread, typical * size) + 2 * unit(self.dtype) * size + tiny(self.dtype)
        return Bound(self.exact, allowed, self.unstable, self.dtype)

    def _typical(self) -> float:
        """The median spread in units of the value, of at most `SAMPLE` elements evenly spaced."""
        assert self.spread is not None
        every = slice(None, None, max(self.exact.size // SAMPLE, 1))
        exact = self.exact.reshape(-1)[every]
        with np.errstate(all="ignore"):
            relative = self.spread.reshape(-1)[every] / np.abs(exact)
        relative = relative[np.isfinite(relative) & np.isfinite(exact)]
        return float(np.median(relative)) if relative.size else 0.0
