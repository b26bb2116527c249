"""Walk a jaxpr with a table of rules: what a backend that is not XLA builds on.

`flatten` turns a closed jaxpr into `Code`: one flat list of equations in which calls are inlined, typed
random keys have become the uint32 arrays that hold them, dead equations are gone and constants are listed
once. A backend then needs a rule per primitive and nothing else; `evaluate` is the plain interpreter.

Only ``scan``, ``while`` and ``cond`` still carry bodies; their parameters hold `Code`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from m2ml import compat
from m2ml.contraction import contract
from m2ml.errors import ExecutionError, M2mlError, OutOfMemory, UnsupportedPrimitive

if TYPE_CHECKING:
    from jax.extend import core


@dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """One primitive applied to arrays of known shape and dtype.

    ``params`` are JAX's own parameters with every jaxpr replaced by `Code`. ``inputs`` and ``outputs`` are
    `jax.ShapeDtypeStruct`; ``source`` is the user's line, ``file.py:12 (function)``, or empty. ``kernel`` is what runs
    an op that was kept whole.
    """

    name: str
    params: Mapping[str, Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    source: str
    effects: bool
    primitive: Any = field(repr=False, kw_only=True)
    bind_params: Mapping[str, Any] = field(repr=False, kw_only=True)
    key_dtypes: tuple[Any, ...] = field(default=(), repr=False)
    kernel: Callable[..., Sequence[Any]] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) output."""
        return tuple(self.outputs[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the (first) output."""
        return np.dtype(self.outputs[0].dtype)

    def bind(self, *arrays: Any) -> list[Any]:
        """Run the equation through JAX itself: what a backend without a rule falls back to."""
        dtypes = self.key_dtypes or (None,) * len(arrays)
        wrapped = [
            x if d is None else jax.random.wrap_key_data(x, impl=compat.key_impl_name(d))
            for x, d in zip(arrays, dtypes, strict=True)
        ]
        out = self.primitive.bind(*wrapped, **self.bind_params)
        flat = list(out) if self.primitive.multiple_results else [out]
        return [jax.random.key_data(x) if compat.is_key(x.dtype) else x for x in flat]

    def describe(self) -> str:
        """``dot_general(float32[2,3], float32[3]) at file.py:12 (f)``."""
        where = f" at {self.source}" if self.source else ""
        return f"{self.name}({', '.join(short(a) for a in self.inputs)}){where}"


def short(aval: Any) -> str:
    """``float32[2,3]``: the way m2ml writes an array's type."""
    return f"{np.dtype(aval.dtype).name}[{','.join(map(str, aval.shape))}]"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An equation with the slots it reads and writes; ``last`` are slots nobody reads afterwards."""

    equation: Equation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """A flat program over numbered slots: inputs and constants are filled first, then steps run in order."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, np.ndarray[Any, Any]]
    steps: tuple[Step, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def in_avals(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(self.avals[i] for i in self.inputs)

    @property
    def out_avals(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(self.avals[i] for i in self.outputs)

    def bodies(self) -> Iterator[Code]:
        """The bodies of this code's control flow, one level down."""
        for step in self.steps:
            yield from equation_bodies(step.equation)

    def equations(self) -> Iterator[Equation]:
        """Every equation, those of bodies included."""
        for step in self.steps:
            yield step.equation
            for body in equation_bodies(step.equation):
                yield from body.equations()


def equation_bodies(equation: Equation) -> Iterator[Code]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Code):
                yield item


# jaxpr -> Code --------------------------------------------------------------------------------------


#: ``keep(call, avals)`` gives the function that runs a call of an op on native arrays, or None for its definition.
Keep = Callable[[Any, Sequence[Any]], Callable[..., Sequence[Any]] | None]


def _definitions(call: Any, avals: Sequence[Any]) -> None:
    """Keep no op whole."""


class _Flattener:
    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.avals: list[jax.ShapeDtypeStruct] = []
        self.constants: dict[int, np.ndarray[Any, Any]] = {}
        self.steps: list[Step] = []
        self._known: dict[Any, int] = {}

    def slot(self, aval: Any) -> int:
        self.avals.append(compat.physical_aval(aval))
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        if compat.is_key(aval.dtype):
            value = jax.random.key_data(value)
        if aval.dtype == jax.dtypes.float0:
            value = np.zeros(aval.shape, np.bool_)
        aval = compat.physical_aval(aval)
        array = np.asarray(value, dtype=aval.dtype).reshape(aval.shape)
        key = (array.tobytes(), array.dtype, array.shape) if array.size <= 64 else id(value)
        if key not in self._known:
            self._known[key] = self.slot(aval)
            self.constants[self._known[key]] = array
        return self._known[key]

    def inline(
        self, jaxpr: core.ClosedJaxpr, args: Sequence[int], source: str = "", *, expansion: bool = False
    ) -> list[int]:
        """Append the equations of ``jaxpr``; those of an ``expansion`` keep the source line of what they expand."""
        env: dict[Any, int] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
        for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            env[var] = self.constant(value, var.aval)

        def read(atom: Any) -> int:
            return self.constant(atom.val, atom.aval) if compat.is_literal(atom) else env[atom]

        for eqn in jaxpr.jaxpr.eqns:
            outs = self.equation(eqn, [read(a) for a in eqn.invars], read, source, expansion)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(a) for a in jaxpr.jaxpr.outvars]

    def equation(
        self, eqn: core.JaxprEqn, args: list[int], read: Callable[[Any], int], source: str, expansion: bool
    ) -> list[int]:
        name = compat.primitive_name(eqn)
        if not expansion:
            source = compat.source_line(eqn) or source
        if name in compat.IDENTITIES:
            return args[: len(eqn.outvars)]
        if name == "platform_index":
            return [self.constant(compat.platform_index(eqn), eqn.outvars[0].aval)]
        if name in compat.OPS:
            call, avals = eqn.params["call"], [self.avals[a] for a in args]
            kernel = self.keep(call, avals) if name == "m2ml_op" else None
            if kernel is None:
                return self.inline(call.jaxpr(avals), args, source)
            return self.append(replace(self.convert(f"m2ml.{call.name}", eqn, source), kernel=kernel), args)
        called = compat.called_jaxpr(eqn)
        if called is not None:
            if name == "checkpoint" and eqn.params.get("differentiated") and eqn.params.get("prevent_cse"):
                args = self.barrier(args, source)
            return self.inline(called, args, source, expansion=expansion)
        if name == "custom_linear_solve":
            solve, operands = compat.linear_solve_jaxpr(eqn)
            return self.inline(solve, [read(a) for a in operands], source, expansion=expansion)
        expanded = compat.physical_equation(eqn) or compat.unbatched_while(eqn) or compat.foreign_definition(eqn)
        if expanded is not None:
            return self.inline(expanded, args, source, expansion=True)
        return self.append(self.convert(name, eqn, source), args)

    def append(self, equation: Equation, args: list[int]) -> list[int]:
        outs = [self.slot(aval) for aval in equation.outputs]
        self.steps.append(Step(equation, tuple(args), tuple(outs)))
        return outs

    def barrier(self, args: list[int], source: str) -> list[int]:
        """Keep a rematerialised computation from being merged with the one it repeats."""
        avals = [self.avals[a] for a in args]
        barrier = jax.make_jaxpr(lambda *xs: jax.lax.optimization_barrier(xs))(*avals)
        return self.inline(barrier, args, source, expansion=True)

    def convert(self, name: str, eqn: core.JaxprEqn, source: str) -> Equation:
        inputs: list[Any] = [v.aval for v in eqn.invars]
        keys = tuple(a.dtype if compat.is_key(a.dtype) else None for a in inputs)
        return Equation(
            name=name,
            params={key: self.param(value) for key, value in compat.parameters(eqn).items()},
            inputs=tuple(compat.physical_aval(a) for a in inputs),
            outputs=tuple(compat.physical_aval(v.aval) for v in eqn.outvars),
            source=source,
            effects=bool(eqn.effects),
            primitive=eqn.primitive,
            bind_params=eqn.params,
            key_dtypes=keys if any(k is not None for k in keys) else (),
        )

    def param(self, value: Any) -> Any:
        """A parameter of an equation with jaxprs as `Code`."""
        if compat.is_jaxpr(value):
            return flatten(compat.closed(value), self.keep)
        if isinstance(value, tuple) and value and all(map(compat.is_jaxpr, value)):
            return tuple(map(self.param, value))
        return value


def flatten(jaxpr: core.ClosedJaxpr, keep: Keep = _definitions) -> Code:
    """Flatten a closed jaxpr: inline calls, make keys physical, drop dead equations, list constants once.

    Random numbers are scaled as XLA scales them (`m2ml.contraction`). Calls of ops become their definitions, but for
    those that ``keep`` gives a function for.
    """
    flattener = _Flattener(keep)
    inputs = [flattener.slot(v.aval) for v in jaxpr.jaxpr.invars]
    outputs = flattener.inline(jaxpr, inputs)
    return _prune(flattener, inputs, outputs)


def _prune(flattener: _Flattener, inputs: list[int], outputs: list[int]) -> Code:
    """Drop steps whose results nobody reads and note, per step, the slots that are read for the last time."""
    live, steps = set(outputs), []
    for step in reversed(contract(flattener.steps, outputs, flattener.constants, flattener.slot)):
        if not step.equation.effects and live.isdisjoint(step.outputs):
            continue
        dead = {s for s in (*step.inputs, *step.outputs) if s not in live}
        live.update(step.inputs)
        steps.append(Step(step.equation, step.inputs, step.outputs, tuple(dead)))
    constants = {slot: value for slot, value in flattener.constants.items() if slot in live}
    return Code(tuple(inputs), tuple(outputs), constants, tuple(reversed(steps)), tuple(flattener.avals))


# Code -> results ------------------------------------------------------------------------------------

#: A rule computes one equation: ``rule(equation, *arrays)`` gives its output, or a sequence for several.
Rule = Callable[..., Any]


class Rules(dict[str, Rule]):
    """A table of rules by primitive name.

    >>> rules = Rules()
    >>> @rules.define("add", "add_any")
    ... def add(equation, x, y):
    ...     return x + y
    >>> sorted(rules)
    ['add', 'add_any']
    """

    def define(self, *names: str) -> Callable[[Rule], Rule]:
        """Register the decorated function for each of ``names``; a name is defined once."""

        def register(rule: Rule) -> Rule:
            for name in names:
                if name in self:
                    raise ValueError(f"primitive {name!r} already has a rule")
                self[name] = rule
            return rule

        return register


def apply_rule(rules: Mapping[str, Rule], equation: Equation, arrays: Sequence[Any]) -> list[Any]:
    """Run the rule of one equation; anything it raises names the primitive, the shapes and the user's line."""
    rule = rules.get(equation.name) if equation.kernel is None else _kernel_rule
    if rule is None and equation.name == "multiply_add":
        x, y, z = arrays
        product = apply_rule(rules, equation.params["mul"], [x, y])
        return apply_rule(rules, equation.params["add"], [*product, z])
    if rule is None:
        raise UnsupportedPrimitive(f"there is no rule for {equation.describe()}")
    try:
        out = rule(equation, *arrays)
    except M2mlError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"{equation.describe()} does not fit into memory: {error}") from error
    except Exception as error:
        raise ExecutionError(f"{equation.describe()} failed: {error}") from error
    return list(out) if isinstance(out, list | tuple) else [out]


def _kernel_rule(equation: Equation, *arrays: Any) -> Sequence[Any]:
    assert equation.kernel is not None
    return equation.kernel(*arrays)


#: Runs one equation on native arrays and gives the list of its results.
Apply = Callable[[Equation, Sequence[Any]], list[Any]]


def evaluate(
    code: Code, apply: Apply, from_host: Callable[[np.ndarray[Any, Any]], Any], args: Sequence[Any]
) -> list[Any]:
    """Run ``code`` one equation after the other, dropping each array after its last use."""
    env: dict[int, Any] = dict(zip(code.inputs, args, strict=True))
    for slot, value in code.constants.items():
        env[slot] = from_host(value)
    for step in code.steps:
        outs = apply(step.equation, [env[i] for i in step.inputs])
        env.update(zip(step.outputs, outs, strict=True))
        for slot in step.last:
            env.pop(slot, None)
    return [env[i] for i in code.outputs]
