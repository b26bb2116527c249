"""An op: a named function that is its own documentation, fallback and oracle, and that kernels may replace.

The decorated function's body is plain `jax.numpy`. A call binds one JAX primitive that carries the op, so that a
backend sees the op whole; every transformation works on it (`m2ml.op_primitive`). Arrays are positional-only and
may be None where the shape string says so; everything static is keyword-only and hashable.

>>> import jax.numpy as jnp
>>> from m2ml.op import op
>>> @op(shapes="x[*b n] -> [*b n]")
... def soft_sign(x, /, *, sharpness: float = 1.0):
...     return x / (1 + sharpness * jnp.abs(x))
>>> soft_sign(jnp.array([1.0, -3.0]))
Array([ 0.5 , -0.75], dtype=float32)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, overload

import jax
import jax.numpy as jnp

from m2ml import compat
from m2ml.op_static import why_not
from m2ml.shapes import Shapes, parse

#: Whether calls traced now may be run by kernels.
_kernels: ContextVar[bool] = ContextVar("m2ml_kernels", default=True)

Function = Callable[..., Any]


@contextlib.contextmanager
def _allowing(kernels: bool) -> Iterator[None]:
    """Whether calls traced inside may be run by kernels."""
    token = _kernels.set(kernels)
    try:
        yield
    finally:
        _kernels.reset(token)


def definitions_only(fn: Function) -> Function:
    """``fn`` in which ops run their definitions on every backend, whatever kernels there are."""

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _allowing(False):
            return fn(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Sample:
    """One test input of an op: arguments (arrays or None, floats in float32) and static arguments."""

    name: str
    args: tuple[Any, ...]
    static: Mapping[str, Any] = field(default_factory=dict)


class Op:
    """A named, differentiable, vmappable function of arrays.

    ``samples()`` are its own test inputs, ``main()`` inputs of the sizes that its speed matters at, ``laws`` facts
    that never look at the body, ``faults`` wrong versions that the suite must catch, ``cost(*avals, **static)`` its
    flops and the bytes it cannot avoid to move, ``types(*avals, **static)`` what its results are, where that is known
    without tracing the definition.
    """

    def __init__(self, definition: Function, shapes: str, name: str = "") -> None:
        self.definition = definition
        self.name = name or definition.__name__
        self.shapes: Shapes = parse(shapes)
        self.signature = inspect.signature(definition)
        kinds = {name: p.kind for name, p in self.signature.parameters.items()}
        self.array_names = tuple(n for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY)
        self.static_names = tuple(n for n, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY)
        if len(kinds) != len(self.array_names) + len(self.static_names):
            raise TypeError(f"op {self.name}: arrays are positional-only and static arguments keyword-only")
        self.samples: Callable[[], Iterable[Sample]] = tuple
        self.main: Callable[[], Iterable[Sample]] = tuple
        self.laws: list[Function] = []
        self.faults: list[Function] = []
        self.cost: Callable[..., tuple[int, int]] | None = None
        self.types: Function | None = None
        self.residuals: Mapping[str, Any] = {}
        self.own_backward: Function | None = None
        functools.update_wrapper(self, definition)

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.shapes.text}>"

    def __call__(self, /, *args: Any, **static: Any) -> Any:
        call, leaves = self.bind(args, static)
        return call(*leaves)

    def bind(self, args: Sequence[Any], static: Mapping[str, Any]) -> tuple[OpCall, list[Any]]:
        """The call of the op with these arguments, and its array leaves. Raises ValueError or TypeError."""
        bound = self._arguments(args, static)
        arrays = tuple(self._array(name, bound.arguments[name]) for name in self.array_names)
        self.shapes.check(self.name, dict(zip(self.array_names, arrays, strict=True)))
        leaves, tree = jax.tree.flatten(arrays)
        values = tuple((name, self._static(name, bound.arguments[name])) for name in self.static_names)
        return OpCall(self, values, tree, _kernels.get()), leaves

    def _arguments(self, args: Sequence[Any], static: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            bound = self.signature.bind(*args, **static)
        except TypeError as error:
            plain = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
            raise TypeError(f"{self.name}: {error}; its signature is {self.name}{inspect.Signature(plain)}") from None
        bound.apply_defaults()
        return bound

    def _array(self, name: str, value: Any) -> Any:
        try:
            return jax.tree.map(lambda x: x if hasattr(x, "aval") else jnp.asarray(x), value)
        except TypeError:
            raise TypeError(f"{self.name}: {name} holds what is no array of numbers; got {_shortly(value)}") from None

    def _static(self, name: str, value: Any) -> Any:
        try:
            hash(value)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"{self.name}: {name} is static and must be hashable; got a {kind}") from None
        if wanted := why_not(self.signature.parameters[name].annotation, value):
            raise TypeError(f"{self.name}: {name} is {_shortly(value)}; it must be {wanted}")
        return value

    # What stands beside the definition ----------------------------------------------------------------

    def give_samples(self, function: Callable[[], Iterable[Sample]]) -> Callable[[], Iterable[Sample]]:
        """Decorator: the op's own test inputs."""
        self.samples = function
        return function

    def give_main(self, function: Callable[[], Iterable[Sample]]) -> Callable[[], Iterable[Sample]]:
        """Decorator: inputs of the sizes that the op's speed matters at, on which kernels' costs are counted."""
        self.main = function
        return function

    def law(self, function: Function) -> Function:
        """Decorator: ``law(op, *args, **static)`` raises AssertionError where the op breaks it."""
        self.laws.append(function)
        return function

    def fault(self, function: Function) -> Function:
        """Decorator: a wrong version of the op that the suite must catch."""
        self.faults.append(function)
        return function

    def give_cost(self, function: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
        """Decorator: ``cost(*avals, **static)`` gives flops and compulsory bytes."""
        self.cost = function
        return function

    def give_types(self, function: Function) -> Function:
        """Decorator: ``types(*avals, **static)`` gives the results as a tree of `jax.ShapeDtypeStruct`.

        It raises what the definition raises, and saves tracing it where a kernel runs.
        """
        self.types = function
        return function

    @overload
    def defbackward(self, function: Function, /) -> Function: ...

    @overload
    def defbackward(self, /, **residuals: Any) -> Callable[[Function], Function]: ...

    def defbackward(self, function: Function | None = None, /, **residuals: Any) -> Any:
        """Decorator: the op's own backward pass ``backward(args, outputs, cotangents, **static)``.

        It gives one cotangent (or None) per array argument. ``outputs`` are those of a forward call with the static
        arguments ``residuals`` changed, the first of which must be the op's usual outputs.
        """
        if function is None:
            return functools.partial(self.defbackward, **residuals)
        self.own_backward, self.residuals = function, residuals
        return function

    @functools.cached_property
    def backward(self) -> Op:
        """The op ``<name>_backward(args, outputs, cotangents)``: cotangents of the leaves that ``wrt`` numbers.

        Without a `defbackward` it is the vector-Jacobian product of the definition, which is worked out again.
        """

        def definition(args: Any, outputs: Any, cotangents: Any, /, *, wrt: Any, static: Any) -> Any:
            if self.own_backward is not None:
                given = self.own_backward(args, outputs, cotangents, **dict(static))
                none_is_leaf = jax.tree.leaves(given, is_leaf=lambda x: x is None)
                present = jax.tree.leaves(args, is_leaf=lambda x: x is None)
                kept = [c for c, a in zip(none_is_leaf, present, strict=True) if a is not None]
                leaves = jax.tree.leaves(args)
                zeros = [
                    jnp.zeros_like(x) if c is None else c.astype(x.dtype) for c, x in zip(kept, leaves, strict=True)
                ]
                return tuple(zeros[i] for i in wrt)
            return _pullback(self.definition, args, cotangents, wrt, dict(static))

        return Op(definition, "-> [...]", f"{self.name}_backward")


def _pullback(definition: Function, args: Any, cotangents: Any, wrt: Sequence[int], static: Mapping[str, Any]) -> Any:
    leaves, tree = jax.tree.flatten(args)

    def of_chosen(*chosen: Any) -> list[Any]:
        every = list(leaves)
        for i, x in zip(wrt, chosen, strict=True):
            every[i] = x
        return _inexact(jax.tree.leaves(definition(*jax.tree.unflatten(tree, every), **static)))

    outs, pull = jax.vjp(of_chosen, *(leaves[i] for i in wrt))
    given = [c.astype(y.dtype) for c, y in zip(cotangents, outs, strict=True)]
    return pull(given)


def _shortly(value: Any) -> str:
    return text if len(text := " ".join(repr(value).split())) <= 60 else f"a {type(value).__name__}"


def _inexact(leaves: Iterable[Any]) -> list[Any]:
    return [x for x in leaves if compat.is_inexact(x.dtype)]


@dataclass(frozen=True)
class OpCall:
    """An op with its static arguments and the tree of its arrays: what the primitive carries.

    ``kernels`` says whether a kernel may run it.
    """

    op: Op
    static: tuple[tuple[str, Any], ...]
    tree: jax.tree_util.PyTreeDef
    kernels: bool = True

    @property
    def name(self) -> str:
        return self.op.name

    def __call__(self, *leaves: Any) -> Any:
        from m2ml.op_primitive import bind_op

        return jax.tree.unflatten(self.out_tree(leaves), bind_op(self, leaves))

    def run(self, function: Function, leaves: Sequence[Any]) -> Any:
        """``function`` with the call's arguments made of ``leaves``."""
        return function(*jax.tree.unflatten(self.tree, leaves), **dict(self.static))

    def definition(self, *leaves: Any) -> list[Any]:
        """The leaves of the definition's results; kernels may run the ops that it calls if one may run this one."""
        with self.choice():
            return jax.tree.leaves(self.run(self.op.definition, leaves))

    def choice(self) -> contextlib.AbstractContextManager[None]:
        """Calls of ops inside may be run by kernels if this one may."""
        return _allowing(self.kernels and _kernels.get())

    def with_static(self, changed: Mapping[str, Any]) -> OpCall:
        return OpCall(self.op, tuple((n, changed.get(n, v)) for n, v in self.static), self.tree, self.kernels)

    def out(self, leaves: Sequence[Any]) -> Any:
        """The results as a tree of `jax.ShapeDtypeStruct`."""
        avals = tuple(compat.abstract(x) for x in leaves)
        return _outputs(self, avals)

    def out_tree(self, leaves: Sequence[Any]) -> jax.tree_util.PyTreeDef:
        return jax.tree.structure(self.out(leaves))

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        """The definition as a closed jaxpr: what runs where no kernel does."""
        return jax.make_jaxpr(self.definition)(*avals)


@functools.lru_cache(maxsize=4096)
def _outputs(call: OpCall, avals: tuple[Any, ...]) -> Any:
    if call.op.types is not None:
        return call.run(call.op.types, avals)
    return jax.eval_shape(lambda *leaves: call.run(call.op.definition, leaves), *avals)


class Ops(dict[str, Op]):
    """The ops of this process by name."""

    def register(self, op: Op) -> None:
        """Add an op. Raises ValueError when the name is taken by another."""
        if self.setdefault(op.name, op) is not op:
            raise ValueError(f"there is an op {op.name!r} already; choose another name")


#: Ops that the suite and the tables know; `m2ml.ops` and plugins add theirs.
ops = Ops()


def op(*, shapes: str, name: str = "") -> Callable[[Function], Op]:
    """Make an op of the decorated function. See `Op` and the module's example."""
    return lambda definition: Op(definition, shapes, name)
