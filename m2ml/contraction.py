"""Random numbers are scaled as XLA scales them, so that a seed gives the same bits on every engine.

XLA rounds twice less often than a program says where it scales what it drew:

- Uniform numbers in a range are ``u * (high - low) + low``; a product and a sum that meet in one loop become a fused
  multiply-add. Such a pair of equations becomes one here, ``multiply_add``, whose result is rounded once. An engine
  without a rule for it runs the two (`m2ml.interpreter.apply_rule`).
- Normal numbers are ``erf_inv(u) * sqrt(2)``, and initial weights those times their deviation; two constant factors
  in a row are multiplied with each other first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from m2ml.interpreter import Step

_SCALAR = jax.ShapeDtypeStruct((), np.float32)


@jax.jit
def multiply_add(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32 arrays, which XLA rounds once where the processor can."""
    return x * y + z


def contract(
    steps: Sequence[Step], outputs: Sequence[int], constants: Iterable[int], new_slot: Callable[[Any], int]
) -> list[Step]:
    """``steps`` with scaled random numbers contracted; ``new_slot`` makes a slot for an array of a type."""
    readers = Counter([*outputs, *(slot for step in steps for slot in step.inputs)])
    graph = _Graph({}, readers, set(constants))
    contracted: list[Step] = []
    for step in steps:
        if step.equation.name in ("add", "mul") and step.equation.dtype == np.float32:
            joined = _scaled_uniform(step, graph) or _scaled_normal(step, graph, new_slot)
        else:
            joined = None
        for new in joined or [step]:
            graph.add(new)
            contracted.append(new)
    return contracted


class _Graph:
    """Who writes a slot, how many read it, and whether it depends on constants only."""

    def __init__(self, writers: dict[int, Step], readers: Counter[int], constants: set[int]) -> None:
        self.writers, self.readers, self.constants = writers, readers, constants

    def add(self, step: Step) -> None:
        self.writers.update((slot, step) for slot in step.outputs)
        if self.constants.issuperset(step.inputs) and not step.equation.effects:
            self.constants.update(step.outputs)

    def written_by(self, slot: int, name: str) -> Step | None:
        """The step that writes ``slot`` if it is a ``name``."""
        step = self.writers.get(slot)
        return step if step is not None and step.equation.name == name else None

    def product(self, step: Step) -> tuple[Step, int] | None:
        """A product that ``step`` alone reads, and the other operand."""
        for slot, other in zip(step.inputs, reversed(step.inputs), strict=True):
            product = self.written_by(slot, "mul")
            if product is not None and self.readers[slot] == 1:
                return product, other
        return None


def _scaled_uniform(step: Step, graph: _Graph) -> list[Step] | None:
    """The sum of a constant and a scaled number on [0, 1), which is made of bits between 1 and 2, minus 1."""
    found = graph.product(step) if step.equation.name == "add" else None
    minus_one = found and graph.written_by(found[0].inputs[0], "sub")
    if not found or not minus_one or not graph.written_by(minus_one.inputs[0], "bitcast_convert_type"):
        return None
    product, other = found
    position = step.inputs.index(other)
    avals = (*product.equation.inputs, step.equation.inputs[position])
    call = jax.make_jaxpr(multiply_add)(*avals).jaxpr.eqns[0]
    equation = replace(
        step.equation,
        name="multiply_add",
        params={"mul": product.equation, "add": step.equation},
        inputs=avals,
        primitive=call.primitive,
        bind_params=call.params,
    )
    return [replace(step, equation=equation, inputs=(*product.inputs, other))]


def _scaled_normal(step: Step, graph: _Graph, new_slot: Callable[[Any], int]) -> list[Step] | None:
    """The product of a constant and ``erf_inv(u) * sqrt(2)``."""
    found = graph.product(step) if step.equation.name == "mul" else None
    if not found or found[1] not in graph.constants:
        return None
    product, scale = found
    for number, root in zip(product.inputs, reversed(product.inputs), strict=True):
        if graph.written_by(number, "erf_inv") and root in graph.constants:
            avals = (product.equation.inputs[product.inputs.index(root)], _operand(step, scale))
            if any(aval.shape for aval in avals):
                return None
            factor = new_slot(_SCALAR)
            both = replace(step.equation, inputs=avals, outputs=(_SCALAR,))
            scaled = replace(step.equation, inputs=(_operand(product, number), _SCALAR))
            return [
                replace(step, equation=both, inputs=(root, scale), outputs=(factor,)),
                replace(step, equation=scaled, inputs=(number, factor)),
            ]
    return None


def _operand(step: Step, slot: int) -> jax.ShapeDtypeStruct:
    return step.equation.inputs[step.inputs.index(slot)]
