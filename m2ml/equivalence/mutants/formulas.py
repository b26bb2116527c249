"""Textbook formulas that are wrong in floating point: they cancel, overflow, or miss a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from m2ml.equivalence.mutants.fault import Array, Change, Run
from m2ml.interpreter import Equation
from m2ml.precision import narrow

Formula = Callable[..., Any]


def _one(x: Array) -> Array:
    return x.dtype.type(1)


def _tanh(x: Array) -> Array:
    e = np.exp(2 * x)
    return np.asarray((e - _one(x)) / (e + _one(x)))


def _hypot(x: Array) -> Array:
    return np.sqrt(x.real**2 + x.imag**2) if x.dtype.kind == "c" else np.asarray(np.abs(x))


def _width(x: Array) -> Any:
    return x.dtype.type(8 * x.dtype.itemsize)


_FORMULAS: Mapping[str, Mapping[str, Formula]] = {
    "abs": {"sqrt(re^2 + im^2)": _hypot},
    "acosh": {"log(x + sqrt(x^2 - 1))": lambda x: np.log(x + np.sqrt(x * x - _one(x)))},
    "asinh": {"log(x + sqrt(x^2 + 1))": lambda x: np.log(x + np.sqrt(x * x + _one(x)))},
    "atan2": {"atan(y / x)": lambda y, x: np.arctan(y / x)},
    "atanh": {"log((1 + x) / (1 - x)) / 2": lambda x: np.log((_one(x) + x) / (_one(x) - x)) / 2},
    "div": {"floors": lambda x, y: np.where(y == 0, x, x // np.where(y == 0, y.dtype.type(1), y))},
    "cbrt": {"x^(1/3)": lambda x: x ** x.dtype.type(1 / 3)},
    "clamp": {"max(low, min(x, high)) that drops NaN": lambda a, x, b: np.fmax(a, np.fmin(x, b))},
    "expm1": {"exp(x) - 1": lambda x: np.exp(x) - _one(x)},
    "log1p": {"log(1 + x)": lambda x: np.log(_one(x) + x)},
    "logistic": {
        "(1 + tanh(x / 2)) / 2": lambda x: (_one(x) + np.tanh(x / 2)) / 2,
        "exp(x) / (1 + exp(x))": lambda x: np.exp(x) / (_one(x) + np.exp(x)),
    },
    "max": {"x where x > y": lambda x, y: np.where(x > y, x, y)},
    "min": {"x where x < y": lambda x, y: np.where(x < y, x, y)},
    "neg": {"0 - x": lambda x: x.dtype.type(0) - x},
    "nextafter": {"x + eps": lambda x, y: x + np.copysign(np.spacing(x), y - x)},
    "one_minus_square": {"1 - x^2": lambda x: _one(x) - x * x},
    "pow": {"exp(y log x)": lambda x, y: np.exp(y.astype(x.dtype) * np.log(x))},
    "rem": {
        "remainder with the sign of the divisor": np.mod,
        "x - y trunc(x / y)": lambda x, y: x - y * np.trunc(x / y),
    },
    "rsqrt": {"sqrt(1 / x) without infinities": lambda x: _one(x) / np.sqrt(np.fmin(x, np.finfo(x.dtype).max))},
    "shift_left": {"shifts by the count modulo the width": lambda x, y: x << (y % _width(x))},
    "shift_right_arithmetic": {"shifts by the count modulo the width": lambda x, y: x >> (y % _width(x))},
    "shift_right_logical": {"shifts copies of the sign in": lambda x, y: x >> np.clip(y, 0, _width(x) - 1)},
    "sign": {"1 where x >= 0": lambda x: np.where(x < 0, -_one(x), _one(x))},
    "sinh": {"(exp(x) - exp(-x)) / 2": lambda x: (np.exp(x) - np.exp(-x)) / 2},
    "tanh": {"(exp(2x) - 1) / (exp(2x) + 1)": _tanh},
}


def _change(formula: Formula) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        integers = all(aval.dtype.kind in "iu" for aval in equation.inputs)
        if integers != (equation.name in INTEGER):
            return list(run(equation, inputs))
        work = [x.astype(np.float32) if x.dtype.itemsize == 2 else x for x in inputs]
        with np.errstate(all="ignore"):
            return [narrow(np.asarray(formula(*work)), equation.dtype)]

    return change


#: Those whose formula here is of integers.
INTEGER = frozenset({"div", "shift_left", "shift_right_arithmetic", "shift_right_logical"})

#: Primitive -> (formula, fault). Halves are worked out in float32.
FORMULAS: Mapping[str, Sequence[tuple[str, Change]]] = {
    name: [(label, _change(formula)) for label, formula in formulas.items()] for name, formulas in _FORMULAS.items()
}
