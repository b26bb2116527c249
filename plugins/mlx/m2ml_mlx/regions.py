"""Partition a program once: regions that ``mx.compile`` can hold, and steps that the host drives.

A region is a maximal run of equations whose rules only build MLX graph. Between regions stand control flow
(its bodies are partitioned in turn), callbacks, and single equations that MLX cannot express, which run on the
CPU through JAX.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np

from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.errors import ExecutionError, FallbackWarning, UnsupportedPrimitive, in_one_line
from m2ml.interpreter import Code, Equation, Rule, Step, apply_rule
from m2ml_mlx.convert import from_host, to_host
from m2ml_mlx.merging import merged
from m2ml_mlx.rules.table import mlx_dtype

#: Runs on lists of MLX arrays.
Run = Callable[[Sequence[mx.array]], list[mx.array]]

#: Primitives that call back into Python: the host runs them by their nature, not for want of a rule.
CALLBACKS = frozenset({"debug_callback", "debug_print", "io_callback", "pure_callback"})

#: Results that depend on constants only are computed once if they are at most this many bytes.
_HOIST_LIMIT = 1 << 20

#: A loop over a body dispatches its work every so many iterations, so that the graph stays short.
_DISPATCH_EVERY = 16


@dataclass
class Region:
    """Steps that become one MLX graph: ``inputs`` and ``outputs`` are slots."""

    steps: list[Step]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    run: Callable[..., list[mx.array]] | None = None


@dataclass
class HostStep:
    """One equation that the host drives; ``reason`` says why when that is for want of a rule."""

    step: Step
    run: Run
    reason: str = ""
    bodies: tuple[Partition, ...] = ()


@dataclass
class Partition:
    """A partitioned `Code`, ready to run."""

    code: Code
    parts: list[Region | HostStep]
    constants: dict[int, mx.array]
    drops: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def single(self) -> bool:
        """Whether the whole code is one region."""
        return len(self.parts) == 1 and isinstance(self.parts[0], Region)

    def __call__(self, args: Sequence[mx.array]) -> list[mx.array]:
        env: dict[int, mx.array] = dict(zip(self.code.inputs, args, strict=True))
        env.update(self.constants)
        for part, drop in zip(self.parts, self.drops, strict=True):
            if isinstance(part, Region):
                assert part.run is not None
                env.update(zip(part.outputs, part.run(*(env[i] for i in part.inputs)), strict=True))
            else:
                outs = part.run([env[i] for i in part.step.inputs])
                env.update(zip(part.step.outputs, outs, strict=True))
            for slot in drop:
                env.pop(slot, None)
        return [env[i] for i in self.code.outputs]

    def fallbacks(self) -> Iterator[HostStep]:
        """Steps that run on the CPU for want of a rule, bodies included."""
        for part in self.parts:
            if isinstance(part, HostStep):
                if part.reason:
                    yield part
                for body in part.bodies:
                    yield from body.fallbacks()


class Partitioner:
    """Builds partitions from a table of rules. ``compiled`` says whether regions go through ``mx.compile``."""

    def __init__(self, rules: Mapping[str, Rule], *, compiled: bool, strict: bool) -> None:
        self.rules = rules
        self.compiled = compiled
        self.strict = strict

    def partition(self, code: Code) -> Partition:
        code = merged(code)
        constants = {slot: from_host(value) for slot, value in code.constants.items()}
        parts: list[Region | HostStep] = []
        shadow = {slot: _placeholder(code.avals[slot]) for slot in code.inputs} | dict(constants)
        hoisted: list[Step] = []
        for step in code.steps:
            host = self._host_step(step, shadow)
            if host is not None:
                parts.append(host)
                shadow.update((slot, _placeholder(code.avals[slot])) for slot in step.outputs)
            elif _depends_on_constants(step, shadow, constants):
                constants.update((slot, shadow[slot]) for slot in step.outputs)
                hoisted.append(step)
            else:
                if not parts or not isinstance(parts[-1], Region):
                    parts.append(Region([]))
                parts[-1].steps.append(step)
        constants.update(_compute(hoisted, code.constants))
        return self._link(Partition(code, parts, constants))

    def _host_step(self, step: Step, shadow: dict[int, mx.array]) -> HostStep | None:
        """How the host runs ``step``, or None after its graph was built on placeholders without trouble."""
        equation = step.equation
        if equation.name in CONTROL_FLOW:
            return self._control(step)
        if equation.name in CALLBACKS:
            return HostStep(step, lambda arrays: run_on_cpu(equation, arrays))
        if equation.kernel is None and equation.name not in self.rules:
            return self._fallback(step, "MLX has nothing for it")
        try:
            outs = apply_rule(self.rules, equation, [shadow[i] for i in step.inputs])
        except UnsupportedPrimitive as error:
            return self._fallback(step, str(error).removeprefix(f"MLX cannot run {equation.describe()}: "))
        _check_outputs(equation, outs)
        shadow.update(zip(step.outputs, outs, strict=True))
        return None

    def _fallback(self, step: Step, reason: str) -> HostStep:
        equation = step.equation
        if self.strict:
            raise UnsupportedPrimitive(f"mlx cannot run {equation.describe()}: {reason}; strict=True forbids the CPU")
        said = f"mlx runs {equation.describe()} on the CPU through JAX: {reason}"
        warnings.warn(FallbackWarning(said, equation.name), stacklevel=2)
        return HostStep(step, lambda arrays: run_on_cpu(equation, arrays), reason)

    def _control(self, step: Step) -> HostStep:
        equation = step.equation
        bodies: dict[int, Partition] = {}
        for value in equation.params.values():
            for code in value if isinstance(value, tuple) else (value,):
                if isinstance(code, Code):
                    bodies[id(code)] = self.partition(code)
        calls = 0

        def run_body(code: Code, args: Sequence[mx.array]) -> list[mx.array]:
            nonlocal calls
            outs = bodies[id(code)](args)
            calls += 1
            if calls % _DISPATCH_EVERY == 0:
                mx.async_eval(outs)
            return outs

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            return run_control_flow(equation, arrays, run_body, lambda x: x.item(), stack)

        return HostStep(step, run, bodies=tuple(bodies.values()))

    def _link(self, partition: Partition) -> Partition:
        """Work out what each part reads, writes and leaves dead, and make the regions runnable."""
        needed = set(partition.code.outputs)
        partition.drops = []
        for part in reversed(partition.parts):
            steps = part.steps if isinstance(part, Region) else [part.step]
            written = {slot for step in steps for slot in step.outputs}
            read = {slot for step in steps for slot in step.inputs} - written - partition.constants.keys()
            if isinstance(part, Region):
                partition.drops.append(tuple(read - needed))
                part.inputs, part.outputs = tuple(sorted(read)), tuple(sorted(written & needed))
                if partition.single and written.issuperset(partition.code.outputs):  # then nothing needs sorting
                    part.inputs, part.outputs = partition.code.inputs, partition.code.outputs
                part.run = self._region(part, partition.constants)
            else:
                partition.drops.append(tuple((read | written) - needed))
            needed |= read
        partition.drops.reverse()
        return partition

    def _region(self, region: Region, constants: dict[int, mx.array]) -> Callable[..., list[mx.array]]:
        used = {slot for step in region.steps for slot in step.inputs} & constants.keys()
        captured = {slot: constants[slot] for slot in used}
        fn = graph_function(self.rules, region.steps, region.inputs, region.outputs, captured)
        return mx.compile(fn) if self.compiled else fn


def graph_function(
    rules: Mapping[str, Rule],
    steps: Sequence[Step],
    inputs: Sequence[int],
    outputs: Sequence[int],
    captured: dict[int, mx.array],
) -> Callable[..., list[mx.array]]:
    """A function that builds the MLX graph of ``steps``."""

    def build(*args: mx.array) -> list[mx.array]:
        env = dict(captured)
        env.update(zip(inputs, args, strict=True))
        for step in steps:
            env.update(zip(step.outputs, apply_rule(rules, step.equation, [env[i] for i in step.inputs]), strict=True))
            for slot in step.last:
                env.pop(slot, None)
        return [env[i] for i in outputs]

    return build


def _placeholder(aval: Any) -> mx.array:
    """A lazy array of the right shape and dtype that nobody ever computes."""
    return mx.zeros(aval.shape, mlx_dtype(aval.dtype))


def _check_outputs(equation: Equation, outs: Sequence[mx.array]) -> None:
    got = [(tuple(x.shape), x.dtype) for x in outs]
    want = [(tuple(a.shape), mlx_dtype(a.dtype)) for a in equation.outputs]
    if got != want:
        raise ExecutionError(f"the mlx rule of {equation.describe()} gives {got}, the program says {want}")


def _depends_on_constants(step: Step, shadow: dict[int, mx.array], constants: dict[int, mx.array]) -> bool:
    """Whether the result of ``step`` depends on constants only, and is small enough to be kept.

    A broadcast scalar stays in the graph: there it is free, as a constant it would be memory to read.
    """
    if step.equation.effects or step.equation.name == "broadcast_in_dim":
        return False
    size = sum(shadow[slot].nbytes for slot in step.outputs)
    return size <= _HOIST_LIMIT and all(slot in constants for slot in step.inputs)


def _compute(steps: Sequence[Step], constants: Mapping[int, np.ndarray[Any, Any]]) -> dict[int, mx.array]:
    """The results of ``steps``, as XLA folds them: a deviation drawn at random is scaled alike on every engine.

    Nothing where they are integers and booleans only, on which engines agree: XLA would compile them for nothing.
    """
    if not any(jnp.issubdtype(aval.dtype, jnp.inexact) for step in steps for aval in step.equation.outputs):
        return {}
    slots = [slot for step in steps for slot in step.outputs]

    def fold() -> list[Any]:
        env: dict[int, Any] = dict(constants)
        for step in steps:
            env.update(zip(step.outputs, step.equation.bind(*(env[slot] for slot in step.inputs)), strict=True))
        return [env[slot] for slot in slots]

    with jax.default_device(jax.devices("cpu")[0]):
        return {slot: from_host(np.asarray(x)) for slot, x in zip(slots, jax.jit(fold)(), strict=True)}


def stack(rows: Sequence[mx.array], aval: Any) -> mx.array:
    return mx.stack(list(rows)) if rows else mx.zeros(aval.shape, mlx_dtype(aval.dtype))


_cpu_jit = jax.jit(lambda equation, *arrays: equation.bind(*arrays), static_argnums=0)


def run_on_cpu(equation: Equation, arrays: Sequence[mx.array]) -> list[mx.array]:
    """Run one equation on the CPU through JAX: host copies in, host copies out."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            outs = _cpu_jit(equation, *(to_host(x) for x in arrays))
    except jax.errors.JaxRuntimeError as error:
        raise ExecutionError(f"{equation.describe()} failed: {in_one_line(error)}") from error
    return [from_host(np.asarray(x)) for x in outs]
