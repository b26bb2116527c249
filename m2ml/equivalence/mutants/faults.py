"""Every fault that applies to the equations of a primitive, found from their operands, parameters and dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import ml_dtypes
import numpy as np

from m2ml.equivalence.mutants.fault import Change, Fault, Run, attempted
from m2ml.equivalence.mutants.formulas import FORMULAS
from m2ml.equivalence.mutants.parameters import parameter_changes
from m2ml.equivalence.mutants.precision import LINEAR, NARROWER, ROUNDINGS, accumulated, rounded, through
from m2ml.equivalence.rounding import ANY_ZERO, ROUNDED
from m2ml.interpreter import Equation
from m2ml.plugins import registry
from m2ml.precision import is_complex, is_float, is_integer

Array = np.ndarray[Any, Any]

#: How many operands and outputs of a primitive are given faults of their own.
OPERANDS, OUTPUTS = 3, 2


def faults_of(equations: Sequence[Equation], neighbours: Sequence[str]) -> list[Fault]:
    """Every fault that applies to some of these equations, all of one primitive."""
    name = equations[0].name
    found = [*_swapped(equations), *parameter_changes(equations)]
    found += [Fault("neighbouring primitive", f"computes {other}", _neighbour(other)) for other in neighbours]
    found += [Fault("naive formula", label, change) for label, change in FORMULAS.get(name, ())]
    if name in ROUNDED:
        found += [Fault("rounding mode", label, rounded(rounding)) for label, rounding in ROUNDINGS.items()]
    found.append(Fault("does nothing", "gives zeros", _zeros))
    for i in range(min(OPERANDS, max(len(e.inputs) for e in equations))):
        if any(i < len(e.inputs) and e.inputs[i] == e.outputs[0] for e in equations):
            found.append(Fault("does nothing", f"gives operand {i} back", _given_back(i)))
        avals = [e.inputs[i] for e in equations if i < len(e.inputs)]
        found += [Fault(kind, f"operand {i} {label}", _operand(i, edit)) for kind, label, edit in _edits(avals)]
    for i in range(min(OUTPUTS, max(len(e.outputs) for e in equations))):
        avals = [e.outputs[i] for e in equations if i < len(e.outputs)]
        edits = [*_edits(avals), *_integer_edits(avals)]
        found += [Fault(kind, f"output {i} {label}", _output(i, edit)) for kind, label, edit in edits]
    if any(is_float(e.dtype) or is_complex(e.dtype) for e in equations) and name in LINEAR:
        found += [Fault("low-precision accumulation", f"adds in {d}", accumulated(d)) for d in NARROWER]
    if any(is_integer(e.dtype) for e in equations) and name in OVERFLOWING:
        found.append(Fault("integer overflow", "saturates", _saturated))
    return [fault for fault in found if name not in ANY_ZERO or not fault.label.endswith("with 0 for -0")]


# operands and outputs -------------------------------------------------------------------------------

Edit = Callable[[Array], Array]


def _operand(i: int, edit: Edit) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        if i >= len(inputs):
            return run(equation, inputs)
        return run(equation, [edit(x) if j == i else x for j, x in enumerate(inputs)])

    return change


def _output(i: int, edit: Edit) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        return [edit(y) if j == i else y for j, y in enumerate(run(equation, inputs))]

    return change


def _zeros(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    return [np.zeros(aval.shape, aval.dtype) for aval in equation.outputs]


def _given_back(i: int) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        right = run(equation, inputs)
        same = i < len(inputs) and equation.inputs[i] == equation.outputs[0]
        return [inputs[i], *right[1:]] if same else right

    return change


def _swapped(equations: Sequence[Equation]) -> Iterator[Fault]:
    most = min(OPERANDS, max(len(e.inputs) for e in equations))
    for i, j in itertools.combinations(range(most), 2):
        if any(j < len(e.inputs) and e.inputs[i] == e.inputs[j] for e in equations):
            yield Fault("swapped operands", f"operands {i} and {j} swapped", _swap(i, j))


def _swap(i: int, j: int) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        order = list(range(len(inputs)))
        if j < len(inputs) and equation.inputs[i] == equation.inputs[j]:
            order[i], order[j] = j, i
        return run(equation, [inputs[k] for k in order])

    return change


def _edits(avals: Sequence[jax.ShapeDtypeStruct]) -> list[tuple[str, str, Edit]]:
    """The faults that arrays of some of these types can have: (kind, what happened to the array, how)."""
    edits: list[tuple[str, str, Edit]] = []
    if any(aval.shape for aval in avals):
        edits += [
            ("dropped tail", "loses its last element", _last_element),
            ("dropped tail", "loses its last row", lambda x: _last(x, 0, np.zeros_like)),
            ("dropped tail", "loses its last column", lambda x: _last(x, -1, np.zeros_like)),
            ("missing last element", "repeats its last but one", lambda x: _stale(x, -1)),
            ("off by one", "moved by one", lambda x: np.roll(x, 1, -1) if x.ndim else x),
            ("wrong axis", "reversed", lambda x: np.flip(x, 0) if x.ndim else x),
            ("wrong axis", "transposed", _transposed),
        ]
    if any(is_float(aval.dtype) or is_complex(aval.dtype) for aval in avals):
        edits += [("low precision", f"rounded to {d}", through(d)) for d in NARROWER]
        edits += [
            ("special values", "with 0 for NaN", lambda x: _where(np.isnan, x, 0)),
            ("special values", "with 0 for -0", lambda x: _where(lambda v: v == 0, x, 0) if is_float(x.dtype) else x),
            ("special values", "with the largest number for infinity", _finite),
            ("special values", "with NaN for infinity", lambda x: _where(np.isinf, x, np.nan)),
        ]
    if any(is_integer(aval.dtype) for aval in avals):
        edits.append(("off by one", "increased by one", lambda x: x + x.dtype.type(1) if x.dtype.kind in "iu" else x))
    return edits


def _integer_edits(avals: Sequence[jax.ShapeDtypeStruct]) -> list[tuple[str, str, Edit]]:
    if not any(is_integer(aval.dtype) and np.dtype(aval.dtype).itemsize > 1 for aval in avals):
        return []
    return [
        ("integer overflow", "wraps at half its width", _half_width),
        ("low precision", "computed in float32", lambda x: _clipped(x.astype(np.float32), x) if _wide_int(x) else x),
    ]


def _wide_int(x: Array) -> bool:
    return x.dtype.kind in "iu" and x.dtype.itemsize >= 4


def _half_width(x: Array) -> Array:
    if x.dtype.kind not in "iu" or x.dtype.itemsize == 1:
        return x
    return np.asarray(x.astype(f"{x.dtype.kind}{x.dtype.itemsize // 2}").astype(x.dtype))


def _last_element(x: Array) -> Array:
    flat = x.reshape(-1).copy()
    flat[-1:] = np.zeros((), x.dtype)
    return flat.reshape(x.shape)


def _last(x: Array, axis: int, make: Callable[[Array], Array]) -> Array:
    if not x.ndim or not x.size:
        return x
    index = [slice(None)] * x.ndim
    index[axis] = slice(-1, None)
    out = x.copy()
    out[tuple(index)] = make(x[tuple(index)])
    return out


def _stale(x: Array, axis: int) -> Array:
    if not x.ndim or x.shape[axis] < 2:
        return x
    return _last(x, axis, lambda _: np.take(x, [x.shape[axis] - 2], axis))


def _transposed(x: Array) -> Array:
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2]
    return np.swapaxes(x, -1, -2).copy() if square else x


def _where(condition: Callable[[Array], Array], x: Array, value: float) -> Array:
    if not (is_float(x.dtype) or is_complex(x.dtype)):
        return x
    return np.where(condition(x), np.asarray(value).astype(x.dtype), x)


def _finite(x: Array) -> Array:
    if not is_float(x.dtype):
        return x
    largest = np.asarray(ml_dtypes.finfo(x.dtype).max, x.dtype)
    return np.where(np.isinf(x), np.where(x > 0, largest, -largest), x)


# integers -------------------------------------------------------------------------------------------

#: Primitives whose integer results may leave the range of their dtype.
OVERFLOWING = frozenset(
    """abs add conv_general_dilated convert_element_type cumprod cumsum dot_general integer_pow mul neg reduce_prod
    reduce_sum reduce_window_sum scatter_add scatter_mul scatter_sub square sub""".split()
)


def _saturated(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    right = run(equation, inputs)
    if equation.dtype.kind not in "iu" or any(is_complex(x.dtype) for x in inputs):
        return right
    floating = replace(
        equation,
        inputs=tuple(_as_float(a) for a in equation.inputs),
        outputs=tuple(_as_float(a) for a in equation.outputs),
    )
    wide = [x.astype(np.float64) if a.dtype.kind in "iu" else x for x, a in zip(inputs, equation.inputs, strict=True)]
    try:
        values = registry.get("reference").apply(floating, wide)[0].astype(np.float64)
    except Exception:  # a rule that wants integers
        return right
    info = np.iinfo(equation.dtype)
    outside = (values > info.max) | (values < info.min)
    return [np.where(outside, _clipped(values, right[0]), right[0])]


def _as_float(aval: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, np.float64) if np.dtype(aval.dtype).kind in "iu" else aval


def _clipped(values: Array, like: Array) -> Array:
    info = np.iinfo(like.dtype)
    wide = np.nan_to_num(values.astype(np.float64))
    return np.where(wide >= info.max, info.max, np.clip(wide, info.min, info.max)).astype(like.dtype)


# other primitives -----------------------------------------------------------------------------------


def _neighbour(name: str) -> Change:
    def change(run: Run, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
        return attempted(run, replace(equation, name=name), inputs) or run(equation, inputs)

    return change
