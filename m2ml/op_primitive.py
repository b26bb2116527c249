"""The two JAX primitives behind every op, and their rules.

``m2ml_op`` carries an `OpCall`: abstract evaluation and lowering come from the definition, or from a kernel where
one accepts. ``m2ml_tangent`` is its derivative, linear in the tangents: its transpose calls the op's backward op, and
both are differentiated again through their definitions, so that derivatives of every order exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from m2ml import compat, kernel
from m2ml.interpreter import short
from m2ml.shapes import shared_leading

if TYPE_CHECKING:
    from m2ml.op import OpCall

op_p = Primitive("m2ml_op")
op_p.multiple_results = True
tangent_p = Primitive("m2ml_tangent")
tangent_p.multiple_results = True


def bind_op(call: OpCall, leaves: Sequence[Any]) -> list[Any]:
    return list(op_p.bind(*leaves, call=call))


@dataclass(frozen=True)
class TangentCall:
    """The derivative of a call: operands are its arrays, its ``outputs`` outputs, and the tangents of ``active``."""

    of: OpCall
    arity: int
    outputs: int
    active: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.of.name}_tangent"

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        end = self.arity + self.outputs
        return list(operands[: self.arity]), list(operands[self.arity : end]), list(operands[end:])

    def definition(self, *operands: Any) -> list[Any]:
        primals, _, tangents = self.split(operands)

        def of_active(*chosen: Any) -> list[Any]:
            every = list(primals)
            for i, x in zip(self.active, chosen, strict=True):
                every[i] = x
            return _inexact(self.of.definition(*every))

        return list(jax.jvp(of_active, [primals[i] for i in self.active], tangents)[1])

    def jaxpr(self, avals: Sequence[Any]) -> Any:
        return jax.make_jaxpr(self.definition)(*avals)


def _inexact(leaves: Sequence[Any]) -> list[Any]:
    return [x for x in leaves if compat.is_inexact(x.dtype)]


def _abstract_op(*avals: Any, call: OpCall) -> list[Any]:
    return [compat.shaped_array(x) for x in jax.tree.leaves(call.out(avals))]


@functools.lru_cache(maxsize=4096)
def _tangent_avals(call: TangentCall, avals: tuple[Any, ...]) -> list[Any]:
    return jax.eval_shape(call.definition, *avals)


def _abstract_tangent(*avals: Any, call: TangentCall) -> list[Any]:
    return [compat.shaped_array(x) for x in _tangent_avals(call, tuple(compat.abstract(a) for a in avals))]


@functools.lru_cache(maxsize=4096)
def _jitted(primitive: Any, call: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(primitive.bind, call=call))


def forget() -> None:
    """Compile calls outside of any program again: what runs them may have changed."""
    _jitted.cache_clear()


for _primitive, _abstract in ((op_p, _abstract_op), (tangent_p, _abstract_tangent)):
    _primitive.def_abstract_eval(_abstract)
    _primitive.def_impl(lambda *xs, call, primitive=_primitive: _jitted(primitive, call)(*xs))


# Lowering ---------------------------------------------------------------------------------------------


def _run_definition(*leaves: Any, call: Any) -> list[Any]:
    return call.definition(*leaves)


def _by_kernel(chosen: kernel.Selection, leaves: Sequence[Any]) -> list[Any]:
    """What a kernel gives. Raises TypeError where it has not the types of the op's results."""
    assert chosen.run
    outs = chosen.run(*leaves)
    given, expected = ([short(y) for y in ys] for ys in (outs, jax.tree.leaves(chosen.call.out(leaves))))
    if given != expected:
        said = f"kernel {chosen.kernel.name} of {chosen.call.name} gives" if chosen.kernel else ""
        raise TypeError(f"{said} {', '.join(given)}; the op gives {', '.join(expected)}")
    return outs


def _lower_op(ctx: Any, *operands: Any, call: OpCall) -> Any:
    names = ctx.module_context.platforms

    def run(*leaves: Any, call: OpCall) -> list[Any]:
        backend, device = kernel.platforms.get(names[0], names[0]), "cpu" if names[0] == "cpu" else "gpu"
        chosen = kernel.select(call, [compat.abstract(x) for x in leaves], backend, device)
        return _by_kernel(chosen, leaves) if chosen.run else call.definition(*leaves)

    return mlir.lower_fun(run if len(names) == 1 else _run_definition, multiple_results=True)(ctx, *operands, call=call)


mlir.register_lowering(op_p, _lower_op)
mlir.register_lowering(tangent_p, mlir.lower_fun(_run_definition, multiple_results=True))


# Derivatives ------------------------------------------------------------------------------------------


def _op_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: OpCall) -> tuple[list[Any], list[Any]]:
    active = tuple(i for i, t in enumerate(tangents) if type(t) is not ad.Zero)
    count = len(jax.tree.leaves(call.out(primals)))
    outs = bind_op(call.with_static(call.op.residuals), primals)
    saved = outs if call.op.own_backward else []
    operands = [*primals, *saved, *(tangents[i] for i in active)]
    derivative = tangent_p.bind(*operands, call=TangentCall(call, len(primals), len(saved), active))
    found, results = iter(derivative), outs[:count]
    return results, [next(found) if compat.is_inexact(y.dtype) else compat.zero_tangent(y) for y in results]


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: TangentCall) -> Any:
    filled = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(call.definition, primals, filled)


def _tangent_transpose(cotangents: Sequence[Any], *operands: Any, call: TangentCall) -> list[Any]:
    primals, outputs, tangents = call.split(operands)
    linear = [ad.is_undefined_primal(t) for t in tangents]
    wrt = tuple(i for i, is_linear in zip(call.active, linear, strict=True) if is_linear)
    given = tuple(ad.instantiate_zeros(c) for c in cotangents)
    arguments = jax.tree.unflatten(call.of.tree, primals)
    with call.of.choice():  # a gradient of what runs by definitions is not taken by a kernel
        found = iter(call.of.op.backward(arguments, tuple(outputs), given, wrt=wrt, static=call.of.static))
    gradients = [next(found) if is_linear else None for is_linear in linear]
    return [None] * (len(primals) + len(outputs)) + gradients


ad.primitive_jvps[op_p] = _op_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose


# Batching ---------------------------------------------------------------------------------------------


def _op_batch(args: Sequence[Any], dims: Sequence[Any], *, call: OpCall) -> tuple[list[Any], list[int]]:
    """One more axis in front where the op takes any number of them, otherwise the definition, mapped."""
    moved = _in_front(args, dims, call)
    if moved is None:
        return _mapped(call.definition, args, dims)
    outs = bind_op(call, moved)
    return outs, [0] * len(outs)


def _in_front(args: Sequence[Any], dims: Sequence[Any], call: OpCall) -> list[Any] | None:
    given = dict(zip(call.op.array_names, jax.tree.unflatten(call.tree, range(len(args))), strict=True))
    names = {index: name for name, index in given.items() if isinstance(index, int)}
    mapped = [names.get(i, "") for i, d in enumerate(dims) if isinstance(d, int)]
    able = shared_leading(call.op.shapes, mapped, list(names.values()))
    if able is None:
        return None
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if isinstance(d, int))
    moved = []
    for i, (x, d) in enumerate(zip(args, dims, strict=True)):
        if isinstance(d, int):
            moved.append(jnp.moveaxis(x, d, 0))
        elif names.get(i) in able:
            moved.append(jnp.broadcast_to(x, (size, *x.shape)))
        else:
            moved.append(x)
    return moved


def _mapped(function: Callable[..., Any], args: Sequence[Any], dims: Sequence[Any]) -> tuple[list[Any], list[int]]:
    axes = tuple(d if isinstance(d, int) else None for d in dims)
    outs = list(jax.vmap(function, in_axes=axes)(*args))
    return outs, [0] * len(outs)


batching.primitive_batchers[op_p] = _op_batch
batching.primitive_batchers[tangent_p] = lambda args, dims, *, call: _mapped(call.definition, args, dims)
