"""Hold every equation of a function against the reference, on exactly the same inputs, for each backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from m2ml import compat
from m2ml.backend import Backend
from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.bounds import FACTOR, RUNS, SUMS, Perturbation, bound_of, error_scale, terms, tiny, unit
from m2ml.equivalence.properties import PROPERTIES, assert_properties
from m2ml.interpreter import Code, Equation, flatten
from m2ml.plugins import registry
from m2ml.precision import narrow, widen

Array = np.ndarray[Any, Any]

_seen: dict[str, Equation] = {}


def traced(fn: Callable[..., Any], arrays: Sequence[Array]) -> Code:
    jaxpr, _, _ = compat.trace(jax.jit(fn), arrays, {})
    return flatten(jaxpr)


def primitives(code: Code) -> set[str]:
    return {equation.name for equation in code.equations()}


def check(code: Code, arrays: Sequence[Array], backends: Sequence[Backend]) -> None:
    """Every equation of ``code`` on every backend against the reference, on the reference's inputs."""
    reference: Any = registry.get("reference")
    env = dict(zip(code.inputs, (np.asarray(x) for x in arrays), strict=True))
    env.update(code.constants)
    for step in code.steps:
        equation = same_equation(step.equation)
        inputs = [env[i] for i in step.inputs]
        expected = expected_outputs(reference, equation, inputs)
        allowed = tolerances(reference, equation, inputs, expected)
        if equation.name in PROPERTIES:
            rounded = [narrow(y, aval.dtype) for y, aval in zip(expected, equation.outputs, strict=True)]
            assert_properties(f"reference: {equation.describe()}", equation, inputs, rounded, unit(equation.dtype))
        for backend in backends:
            got = run_equation(backend, equation, inputs)
            if equation.name in PROPERTIES:
                assert_declared(backend.name, equation, got)
                what = f"{backend.name}: {equation.describe()}"
                assert_properties(what, equation, inputs, got, unit(equation.dtype))
                continue
            for number, (y, e, a) in enumerate(zip(got, expected, allowed, strict=True)):
                aval = equation.outputs[number]
                assert_agrees(f"{backend.name}: output {number} of {equation.describe()}", y, e, a, aval)
        outs = [narrow(y, aval.dtype) for y, aval in zip(expected, equation.outputs, strict=True)]
        env.update(zip(step.outputs, outs, strict=True))


def same_equation(equation: Equation) -> Equation:
    """One object for equal equations, so that XLA compiles them once."""
    if equation.name in CONTROL_FLOW or any(isinstance(v, Code) for v in equation.params.values()):
        return equation
    return _seen.setdefault(f"{equation.describe()} {equation.outputs} {sorted(equation.params.items())}", equation)


def run_equation(backend: Backend, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    return [backend.to_host(y) for y in backend.apply(equation, [backend.from_host(x) for x in inputs])]


def expected_outputs(reference: Any, equation: Equation, inputs: Sequence[Array]) -> list[Array]:
    return list(reference.apply(equation, [widen(x) for x in inputs]))


def tolerances(
    reference: Any, equation: Equation, inputs: Sequence[Array], expected: list[Array]
) -> list[Array | None]:
    """Per output the distance allowed per element, or None where it must be exact.

    The error scale of a sum is what independent rounding errors add up to, so a single sum may be `FACTOR` times
    that; every other scale is already a worst case. An engine may flush each term below the least normal number.
    Rounding of the output itself is applied by `assert_agrees`.
    """
    wide = [widen(x) for x in inputs]
    if equation.name in CONTROL_FLOW:
        return measured(equation, wide, expected)
    scales = error_scale(equation, wide, expected, lambda *xs: reference.apply(equation, xs))
    factor, lost = (FACTOR, terms(equation)) if equation.name in SUMS else (1.0, 1)
    lost *= 2 if any(map(np.iscomplexobj, expected)) else 1
    return [
        None if s is None else np.where(np.isfinite(s), factor * s, 0.0) + lost * tiny(aval.dtype)
        for s, aval in zip(scales, equation.outputs, strict=True)
    ]


def measured(equation: Equation, inputs: Sequence[Array], expected: list[Array]) -> list[Array | None]:
    """The spread of a loop's results when each equation of its body is moved by its error scale."""
    kind: Any = type(registry.get("reference"))
    runs = []
    for seed in range(RUNS):
        perturb = Perturbation(np.random.default_rng(seed), registry.get("reference").apply)
        runs.append(kind(perturb).apply(equation, inputs))
    bounds = [
        bound_of(aval.dtype, y, [run[i] for run in runs])
        for i, (aval, y) in enumerate(zip(equation.outputs, expected, strict=True))
    ]
    return [np.where(b.unstable, np.inf, b.allowed) if unit(b.dtype) else None for b in bounds]


def assert_declared(name: str, equation: Equation, got: Sequence[Array]) -> None:
    declared = [(tuple(aval.shape), np.dtype(aval.dtype)) for aval in equation.outputs]
    assert [(y.shape, y.dtype) for y in got] == declared, f"{name}: {equation.describe()} gives other types"


def assert_agrees(what: str, got: Array, expected: Array, allowed: Array | None, aval: Any) -> None:
    """Shape and dtype as declared; every element inside ``expected ± allowed`` once both ends are rounded to the dtype.

    Rounding the ends makes overflow come out right: a result that may round to infinity may be infinite.
    """
    assert (got.shape, got.dtype) == (tuple(aval.shape), np.dtype(aval.dtype)), f"{what}: {got.dtype}{got.shape}"
    if unit(got.dtype) == 0:
        _report(what, got, expected, got != expected)
        return
    parts = [(got.real, expected.real), (got.imag, expected.imag)] if got.dtype.kind == "c" else [(got, expected)]
    margin = np.zeros(got.shape) if allowed is None else allowed
    with np.errstate(all="ignore"):
        for y, e in parts:
            low = narrow(e - margin, y.dtype).astype(np.float64)
            high = narrow(e + margin, y.dtype).astype(np.float64)
            value = y.astype(np.float64)
            inside = ((low <= value) & (value <= high)) | (np.isnan(value) & np.isnan(e))
            if allowed is None:
                inside &= (e != 0) | (np.signbit(value) == np.signbit(e))
            _report(what, y, e, ~inside, margin)


def _report(what: str, got: Array, expected: Array, wrong: Array, margin: Array | None = None) -> None:
    if not wrong.any():
        return
    index = tuple(int(i[0]) for i in np.nonzero(wrong)) if wrong.ndim else ()
    allowed = "" if margin is None else f", allowed ± {margin[index]!r}"
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} elements differ; at {index} got {got[index]!r}, "
        f"expected {expected[index]!r}{allowed}"
    )
