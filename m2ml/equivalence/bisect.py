"""Find the first equation of a program whose output leaves its bound on a backend.

The program is stepped one equation at a time, each on the reference's inputs, so that an error does not travel: what
leaves its bound is the equation's own doing. Loops and branches are entered. If every equation alone is right, the
program as the backend compiles it is wrong (fusion, reuse of buffers): then beginnings of it are compiled, each as a
program of its own that returns all that is still needed, and halving finds the shortest one that is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from m2ml.backend import Backend
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.equivalence.effects import CALLBACKS, silent
from m2ml.equivalence.equations import equation_bounds, judge_equation, rounded, run_equation
from m2ml.equivalence.measure import SECOND_LOOK, judge_all, measured_bounds, run_program
from m2ml.equivalence.report import Divergence, OutputReport
from m2ml.interpreter import Code, Equation, Step, equation_bodies, evaluate
from m2ml.plugins import registry
from m2ml.program import Program

Array = np.ndarray[Any, Any]


def first_disagreement(program: Program, host: Sequence[Array], backend: str) -> Divergence | None:
    """The first equation of ``program`` that leaves its bound on ``backend``, or None when nothing does.

    ``host`` are the program's inputs in its own order and dtypes, typed keys as uint32. Host callbacks are run by the
    reference only and are not judged.
    """
    engine = registry.get(backend)
    code = silent(program.code_with_ops(_keep_whole))
    loops = any(step.equation.name in CONTROL_FLOW for step in code.steps)
    for enter_all in (False, True) if loops else (False,):  # a loop is one equation first, and entered when it is wrong
        try:
            _Stepper(engine, enter_all).run(code, host, "")
        except _Found as found:
            return found.divergence
    return _compiled(program, code, host, backend)


def _keep_whole(call: Any, avals: Sequence[Any]) -> Callable[..., Any]:
    """Keep every op whole; it is compiled as a program of its own, in which the backend chooses its kernel."""
    return op_program


# One equation at a time ------------------------------------------------------------------------------


class _Found(Exception):
    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence


class _Stepper:
    """Runs code with the reference's results, holding the backend against each of them."""

    def __init__(self, engine: Backend, enter_all: bool) -> None:
        self.engine, self.enter_all = engine, enter_all

    def run(self, code: Code, args: Sequence[Any], path: str) -> list[Any]:
        typed = [np.asarray(x, aval.dtype) for x, aval in zip(args, code.in_avals, strict=True)]
        return evaluate(code, lambda equation, arrays: self.step(equation, arrays, path), np.asarray, typed)

    def step(self, equation: Equation, inputs: Sequence[Array], path: str) -> list[Array]:
        if equation.kernel is not None or _holds_ops(equation):
            return self.whole(equation, inputs, path)
        bounds = equation_bounds(equation, inputs)
        outs = rounded(bounds)
        if equation.name in CALLBACKS:
            return outs
        loop = equation.name in CONTROL_FLOW
        try:
            reports = judge_equation(equation, inputs, run_equation(self.engine, equation, inputs), bounds)
        except Exception as error:  # whatever an engine raises is what it gave
            reports = [failed(error)]
        worst = worst_of(reports)
        if loop and (self.enter_all or worst):
            self.enter(equation, inputs, path)
        if worst:
            raise _Found(Divergence(equation.name, equation.describe(), equation.source, worst, path))
        return outs

    def whole(self, equation: Equation, inputs: Sequence[Array], path: str) -> list[Array]:
        """Hold an op, or a loop of ops, with whatever kernels the backend has for it, against its definition.

        It is entered when it is wrong.
        """
        program = op_program(equation)
        bounds, worst = measured_bounds(program, inputs), _judged(program, inputs, self.engine.name)
        if (worst or self.enter_all) and equation.name in CONTROL_FLOW:
            self.enter(equation, inputs, path)
        elif worst or self.enter_all:
            inside = f"the definition of {equation.name}"
            self.run(silent(program.code), inputs, f"{path}, {inside}" if path else inside)
        if worst:
            raise _Found(Divergence(equation.name, equation.describe(), equation.source, worst[1], path))
        return rounded(bounds)

    def enter(self, equation: Equation, inputs: Sequence[Array], path: str) -> None:
        """Step through the bodies of a loop or a branch."""
        calls: Counter[int] = Counter()

        def run(code: Code, args: Sequence[Any]) -> list[Any]:
            place = _place(equation, code, calls[id(code)])
            calls[id(code)] += 1
            return self.run(code, args, f"{path}, {place}" if path else place)

        run_control_flow(equation, inputs, run, np.asarray, lambda rows, aval: np.zeros(aval.shape, aval.dtype))


def _holds_ops(equation: Equation) -> bool:
    """Whether a body of a loop or a branch has ops that are kept whole."""
    return any(inner.kernel is not None for body in equation_bodies(equation) for inner in body.equations())


def _place(equation: Equation, body: Code, calls: int) -> str:
    """``iteration 3 of scan``: where in a loop a body stands that ran ``calls`` times before."""
    params = equation.params
    if equation.name == "cond":
        return f"branch {next(i for i, code in enumerate(params['branches']) if code is body)} of cond"
    if equation.name == "scan":
        return f"iteration {params['length'] - 1 - calls if params['reverse'] else calls} of scan"
    part = " (its condition)" if body is params["cond_jaxpr"] else ""
    return f"iteration {calls} of while{part}"


def worst_of(reports: Sequence[OutputReport]) -> OutputReport | None:
    """The worst output outside its bound, or None."""
    return max((r for r in reports if not r.ok), key=lambda r: r.worst, default=None)


def failed(error: Exception) -> OutputReport:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return OutputReport("", "", np.inf, np.inf, (), 0, said)


# Beginnings of the program, compiled ---------------------------------------------------------------


def _compiled(program: Program, code: Code, host: Sequence[Array], backend: str) -> Divergence | None:
    """A disagreement of the program as ``backend`` compiles it, located by halving; None when it agrees."""
    whole = _judged(program, host, backend)
    if whole is None or not code.steps:
        return None
    raises = not whole[1].dtype  # then what is looked for is the first equation with which it raises

    def beginning(count: int) -> tuple[int, OutputReport] | None:
        found = _judged(_beginning(program, code, count), host, backend)
        return found if found is None or raises == (not found[1].dtype) else None

    right, wrong, worst = 0, len(code.steps), beginning(len(code.steps))
    if worst is None:
        step = _writer(code, whole[0])
        return _divergence(step.equation, whole[1], "whole") if step else None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        found = beginning(middle)
        if found is None:
            right = middle
        else:
            wrong, worst = middle, found
    return _divergence(code.steps[wrong - 1].equation, worst[1], "compiled")


def _divergence(equation: Equation, output: OutputReport, how: str) -> Divergence:
    return Divergence(equation.name, equation.describe(), equation.source, replace(output, path=""), "", how)


def _judged(program: Program, host: Sequence[Array], backend: str) -> tuple[int, OutputReport] | None:
    """Number and report of the worst output of a compiled program that is outside its bound."""
    try:
        results = {backend: run_program(backend, program, host)}
    except Exception as error:  # whatever an engine raises is what it gave
        return 0, failed(error)
    outputs = judge_all(program, results, measured_bounds(program, host, runs=SECOND_LOOK)).backends[0].outputs
    wrong = [(i, out) for i, out in enumerate(outputs) if not out.ok]
    return max(wrong, key=lambda item: item[1].worst, default=None)


def _beginning(program: Program, code: Code, count: int) -> Program:
    """The first ``count`` equations as a program that returns every value made by them that is still needed."""
    made = [slot for step in code.steps[:count] for slot in step.outputs]
    needed = {*code.outputs, *(slot for step in code.steps[count:] for slot in step.inputs)}
    outputs = code.outputs if count == len(code.steps) else tuple(slot for slot in made if slot in needed)
    steps = tuple(replace(step, last=()) for step in code.steps[:count])
    return retraced(program, replace(code, steps=steps, outputs=outputs))


def retraced(program: Program, code: Code) -> Program:
    """``code`` as a program on physical arrays, with the name and donation of ``program``."""

    def fn(*args: Any) -> list[Any]:
        return evaluate(code, lambda equation, arrays: equation.bind(*arrays), jax.numpy.asarray, args)

    return _program(program.name, fn, code.in_avals, program.donated, program.strict)


def op_program(equation: Equation) -> Program:
    """One equation, such as a call of an op, as a program."""
    donated = (False,) * len(equation.inputs)
    return _program(equation.name, equation.bind, equation.inputs, donated, strict=False)


def _program(
    name: str, fn: Callable[..., list[Any]], avals: Sequence[Any], donated: tuple[bool, ...], strict: bool
) -> Program:
    jaxpr = jax.make_jaxpr(fn)(*avals)
    in_tree, out_tree = jax.tree.structure((tuple(avals), {})), jax.tree.structure([0] * len(jaxpr.out_avals))
    return Program(name, jaxpr, in_tree, out_tree, donated, strict)


def _writer(code: Code, output: int) -> Step | None:
    """The step that makes output number ``output``."""
    return next((step for step in code.steps if code.outputs[output] in step.outputs), None)
