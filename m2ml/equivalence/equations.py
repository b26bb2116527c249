"""One equation against the reference, on exactly the same inputs: its own bound, without the rest of its program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m2ml.backend import Backend
from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.bounds import FACTOR, RUNS, Bound, bound_of
from m2ml.equivalence.judgement import judge
from m2ml.equivalence.overflow import inverse_of_power, may_overflow
from m2ml.equivalence.perturbation import Flushing, Perturbation, on_a_cut
from m2ml.equivalence.properties import PROPERTIES, Held, properties
from m2ml.equivalence.report import OutputReport
from m2ml.equivalence.rounding import ANY_ZERO, ARITHMETIC, ROUNDED, SUMS, terms, tiny, unit
from m2ml.equivalence.scales import error_scale
from m2ml.interpreter import Code, Equation
from m2ml.plugins import registry
from m2ml.precision import narrow, widen

Array = np.ndarray[Any, Any]

#: A distance that allows a zero either sign, and nothing else.
EITHER_ZERO = float(np.nextafter(0.0, 1.0))

#: Primitives that compare numbers and give one of them: one that takes subnormal numbers for zero finds them equal.
CHOOSING = frozenset(
    """clamp cummax cummin max min nextafter reduce_max reduce_min reduce_window_max reduce_window_min
    scatter_max scatter_min sort top_k""".split()
)

#: Equations remembered by `same_equation`; beyond this many they are forgotten and compiled again.
_MOST_SEEN = 4096
_seen: dict[str, Equation] = {}


def same_equation(equation: Equation) -> Equation:
    """One object for equal equations, wherever they stand in a source file, so that XLA compiles them once."""
    if equation.name in CONTROL_FLOW or any(isinstance(v, Code) for v in equation.params.values()):
        return equation
    if len(_seen) >= _MOST_SEEN:
        _seen.clear()
    key = f"{equation.name} {equation.inputs} {equation.outputs} {sorted(equation.params.items())}"
    return _seen.setdefault(key, equation)


def run_equation(backend: Backend, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    """The equation's outputs on ``backend`` as NumPy arrays, from NumPy arrays of the declared dtypes."""
    outs = backend.apply(same_equation(equation), [backend.from_host(x) for x in inputs])
    return [backend.to_host(y) for y in outs]


def expected_outputs(equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    """What the reference gives, in float64."""
    return list(registry.get("reference").apply(equation, [widen(x) for x in inputs]))


def equation_bounds(equation: Equation, inputs: Sequence[Array], *, runs: int = RUNS) -> list[Bound]:
    """The bound of each output of ``equation`` on ``inputs`` of the declared dtypes.

    The error scale of a sum is what independent rounding errors add up to, so a single sum may be `FACTOR` times
    that; every other scale is already a worst case. An engine may flush each term below the least normal number.
    Nothing is allowed where an equation is exact or correctly rounded, nor where every function gives a zero of a
    certain sign; rounding of the output itself is the judgement's part. Control flow is measured by ``runs`` runs.
    """
    reference, wide = registry.get("reference"), [widen(x) for x in inputs]
    bounds, steady = _bounds(equation, wide, runs), equation.name in ARITHMETIC and not on_a_cut(equation, wide)
    for seen in Flushing().other_inputs(equation, wide):
        others = _chosen_by(equation, seen, wide) if equation.name == "sort" else reference.apply(equation, seen)
        each = zip(bounds, others, strict=True)
        bounds = [_or_else(bound, other, steady, equation.name in CHOOSING) for bound, other in each]
    return [_or_overflow(equation, wide, bound) for bound in bounds]


def _bounds(equation: Equation, wide: Sequence[Array], runs: int) -> list[Bound]:
    reference = registry.get("reference")
    expected = list(reference.apply(equation, wide))
    if equation.name in CONTROL_FLOW:
        return _measured(equation, wide, expected, runs)
    scales = error_scale(equation, wide, expected, lambda *xs: reference.apply(equation, xs))
    factor, lost = (FACTOR, terms(equation)) if equation.name in SUMS else (1.0, 1)
    lost *= 2 if any(map(np.iscomplexobj, expected)) else 1
    bounds = []
    for y, s, aval in zip(expected, scales, equation.outputs, strict=True):
        allowed = np.full(y.shape, EITHER_ZERO if equation.name in ANY_ZERO else 0.0)
        if s is not None and equation.name in ROUNDED and not np.iscomplexobj(y):
            allowed = np.where((y != 0) & (np.abs(y) < tiny(aval.dtype)), tiny(aval.dtype), 0.0)
        elif s is not None:
            certain = (y == 0) & (s == 0) & (equation.name not in ANY_ZERO) & (y.dtype.kind == "f")
            allowed = np.where(certain, 0.0, np.where(np.isfinite(s), factor * s, 0.0) + lost * tiny(aval.dtype))
        bounds.append(Bound(y, allowed, np.zeros(y.shape, bool), np.dtype(aval.dtype)))
    return bounds


def _or_overflow(equation: Equation, wide: Sequence[Array], bound: Bound) -> Bound:
    """``bound`` where what an engine works out on the way may overflow or vanish; of primitives with one result."""
    rule, y = registry.get("reference").apply, bound.expected
    over = may_overflow(equation, wide, y, lambda *xs: rule(equation, xs))
    inverse = inverse_of_power(equation, wide, y)
    if inverse is not None:
        over = (inverse != y) & ~(np.isnan(inverse) & np.isnan(y))
    return bound if over is None else replace(bound, unstable=bound.unstable | over)


def _or_else(bound: Bound, other: Array, steady: bool, choosing: bool) -> Bound:
    """``bound`` where an engine may take subnormal numbers for zero and then give ``other``.

    Arithmetic (``steady``) gives one of the two or, of a sum, something between. What chooses among numbers may take
    any of those that became equal, and give it as it was: XLA's CPU sorts 0, -3e-39 and 2e-39 into that order. What
    is `lost` to the formulas of other functions is not judged.
    """
    if not unit(bound.dtype):
        return replace(bound, unstable=bound.unstable | (other != bound.expected))
    with np.errstate(all="ignore"):
        same = (other == bound.expected) | (np.isnan(other) & np.isnan(bound.expected))
        distance = np.abs(other - bound.expected)
    near = ~same & np.isfinite(distance) & ((distance <= tiny(bound.dtype)) | steady)
    turned = (distance == 0) & (np.signbit(np.real(other)) != np.signbit(np.real(bound.expected)))
    allowed = np.where(turned, np.maximum(bound.allowed, EITHER_ZERO), bound.allowed)
    allowed = np.where(near, allowed + distance, allowed)
    if choosing:  # two numbers below the least normal one are less than twice that apart
        small = _vanishes(bound.expected, bound.dtype) | _vanishes(other, bound.dtype)
        allowed = np.where(small, allowed + 2 * tiny(bound.dtype), allowed)
    return replace(bound, allowed=allowed, unstable=bound.unstable | (~same & ~near))


def _vanishes(x: Array, dtype: np.dtype[Any]) -> Array:
    """Where a number, or a part of it, is below the least normal one."""
    parts = (x.real, x.imag) if np.iscomplexobj(x) else (x,)
    return np.any([np.abs(part) < tiny(dtype) for part in parts], axis=0)


def _chosen_by(equation: Equation, keys: Sequence[Array], operands: Sequence[Array]) -> list[Array]:
    """``operands`` in the order in which ``equation``, a sort, puts ``keys``."""
    count = equation.params["num_keys"]
    both = (*equation.inputs[:count], *equation.inputs)
    twice = replace(equation, inputs=both, outputs=both)
    return registry.get("reference").apply(twice, [*keys[:count], *operands])[count:]


def _measured(equation: Equation, inputs: Sequence[Array], expected: Sequence[Array], count: int) -> list[Bound]:
    """The spread of a loop's results when each equation of its body is moved by its error scale."""
    reference: Any = registry.get("reference")
    runs = []
    for seed in range(count):
        perturb = Perturbation.of_run(seed, np.random.default_rng(seed), reference.apply)
        runs.append(type(reference)(perturb).apply(equation, inputs))
    each = zip(range(len(expected)), equation.outputs, expected, strict=True)
    return [bound_of(aval.dtype, y, [run[i] for run in runs]) for i, aval, y in each]


def judge_equation(
    equation: Equation, inputs: Sequence[Array], got: Sequence[Array], bounds: Sequence[Bound]
) -> list[OutputReport]:
    """Hold the outputs of one equation against their bounds; a factorisation against what defines it."""
    names = ["result"] if len(got) == 1 else [f"output {i}" for i in range(len(got))]
    if equation.name not in PROPERTIES:
        return [judge(name, y, b, nan_parts=True) for name, y, b in zip(names, got, bounds, strict=True)]
    judged = [_types(name, y, bound) for name, y, bound in zip(names, got, bounds, strict=True)]
    if not all(report.ok for report in judged):
        return judged
    return [_held(held, got[0].dtype) for held in properties(equation, inputs, got, unit(equation.dtype))]


def _types(name: str, got: Array, bound: Bound) -> OutputReport:
    """Shape and dtype only."""
    anything = Bound(bound.expected, bound.allowed, np.ones(bound.expected.shape, bool), bound.dtype)
    return judge(name, got, anything)


def _held(held: Held, dtype: Any) -> OutputReport:
    worst = float(np.max(held.distance, initial=0.0))
    share = worst / held.allowed if held.ok and worst else 0.0 if held.ok else np.inf
    said = "" if held.ok else f"{held.said} fails by {worst:.3g}, allowed {held.allowed:.3g}"
    return OutputReport(held.said, np.dtype(dtype).name, worst, share, (), 0, said)


def rounded(bounds: Sequence[Bound]) -> list[Array]:
    """The expected outputs as their dtypes hold them."""
    return [narrow(bound.expected, bound.dtype) for bound in bounds]
