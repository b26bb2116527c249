"""Faults of precision: numbers held or added in too few bits, or rounded the wrong way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from m2ml.equivalence.mutants.fault import Array, Change, Run
from m2ml.interpreter import Equation
from m2ml.plugins import registry
from m2ml.precision import is_complex, is_float, narrow, widen

#: Formats with fewer bits than float32, one of them (tensor cores' own) without a dtype: it has 10 bits of mantissa.
NARROWER = ("bfloat16", "float16", "tensorfloat32")


def through(name: str) -> Callable[[Array], Array]:
    def edit(x: Array) -> Array:
        if x.dtype == np.float32:
            return _rounded_to(x, name)
        if not is_complex(x.dtype):
            return x
        out = np.empty_like(x)
        out.real, out.imag = _rounded_to(x.real, name), _rounded_to(x.imag, name)
        return out

    return edit


def _rounded_to(x: Array, name: str) -> Array:
    if name == "tensorfloat32":
        bits = x.copy().view(np.uint32)
        even = (bits >> np.uint32(13)) & np.uint32(1)
        return np.where(np.isfinite(x), ((bits + np.uint32(0xFFF) + even) & np.uint32(0xFFFFE000)).view(np.float32), x)
    return np.asarray(x.astype(getattr(ml_dtypes, name, name)).astype(np.float32))


#: Primitives that are linear in their last operand of numbers: the sum of the results of its parts is the result.
LINEAR = frozenset(
    """conv_general_dilated cumsum dot_general fft ragged_dot ragged_dot_general reduce_sum reduce_window_sum
    scaled_dot select_and_gather_add""".split()
)

#: Into how many parts an operand is split whose parts are then added in low precision.
PARTS = 8


def accumulated(name: str) -> Change:
    narrower = through(name)

    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        x = inputs[0]
        part = np.random.default_rng(0).integers(0, PARTS, x.shape)
        total = [np.zeros(a.shape, a.dtype) for a in equation.outputs]
        with np.errstate(all="ignore"):
            for i in range(PARTS):
                terms = run(equation, [np.where(part == i, x, np.zeros_like(x)), *inputs[1:]])
                total = [narrower(t + y) for t, y in zip(total, terms, strict=True)]
        return total

    return change


#: How a value is rounded that lies between two neighbours: the wrong ways.
ROUNDINGS: dict[str, Callable[[Array, Array], Array]] = {
    "rounds towards zero": lambda exact, nearest: _towards(nearest, np.abs(_wide(nearest)) > np.abs(exact), 0.0),
    "rounds towards infinity": lambda exact, nearest: _towards(nearest, _wide(nearest) < exact, np.inf),
    "rounds halves away from zero": lambda exact, nearest: _towards(
        nearest, _halfway(exact, nearest) & (np.abs(_wide(nearest)) < np.abs(exact)), np.inf * np.sign(exact)
    ),
}


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _towards(x: Array, where: Array, end: Any) -> Array:
    return np.where(where & np.isfinite(_wide(x)), np.nextafter(x, np.asarray(end, np.float64).astype(x.dtype)), x)


def _halfway(exact: Array, nearest: Array) -> Array:
    beyond = np.nextafter(nearest, (np.inf * np.sign(exact)).astype(nearest.dtype))
    return np.asarray((_wide(nearest) + _wide(beyond)) / 2 == exact)


def rounded(rounding: Callable[[Array, Array], Array]) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        right = run(equation, inputs)
        if not is_float(equation.dtype) or any(is_complex(x.dtype) for x in inputs):
            return right
        with np.errstate(all="ignore"):
            exact = registry.get("reference").apply(equation, [widen(x) for x in inputs])[0].astype(np.float64)
            nearest = narrow(exact, equation.dtype)
            wrong = rounding(exact, nearest)
            return [np.where((wrong != nearest) & np.isfinite(_wide(wrong)), wrong, right[0])]

    return change
