"""Small results that a program computes several times, such as positions and their cosines in every layer: once.

`mx.compile` merges what stands close together, and costs the host time for each node. Large results stay as they are,
for one that is kept for later takes memory; what is repeated on purpose stands behind an ``optimization_barrier``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from m2ml.cost import nbytes
from m2ml.interpreter import Code, Equation, Step, equation_bodies

#: Bytes up to which a result is kept rather than computed again.
_SMALL = 1 << 14


def merged(code: Code) -> Code:
    """``code`` with equal steps once, and without parts of no length in concatenations."""
    same: dict[int, int] = {}
    seen: dict[Hashable, tuple[int, ...]] = {}
    steps: list[Step] = []
    for step in code.steps:
        equation, inputs = step.equation, tuple(same.get(slot, slot) for slot in step.inputs)
        whole = _only_part(equation)
        if whole is not None:
            same[step.outputs[0]] = inputs[whole]
            continue
        key = _key(equation, inputs)
        if key is not None and key in seen:
            same.update(zip(step.outputs, seen[key], strict=True))
            continue
        if key is not None:
            seen[key] = step.outputs
        steps.append(replace(step, inputs=inputs))
    outputs = tuple(same.get(slot, slot) for slot in code.outputs)
    return replace(code, outputs=outputs, steps=_pruned(steps, outputs))


def _only_part(equation: Equation) -> int | None:
    """The one input of a concatenation that has elements."""
    if equation.name != "concatenate":
        return None
    filled = [i for i, aval in enumerate(equation.inputs) if aval.size]
    return filled[0] if len(filled) == 1 else None


def _key(equation: Equation, inputs: tuple[int, ...]) -> Hashable | None:
    """Equal for steps that compute the same; None for one that must not be merged."""
    large = sum(map(nbytes, equation.outputs)) > _SMALL
    if large or equation.effects or equation.kernel or equation.name == "optimization_barrier":
        return None
    if any(True for _ in equation_bodies(equation)):
        return None
    key = (equation.name, inputs, tuple(sorted(equation.params.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _pruned(steps: list[Step], outputs: tuple[int, ...]) -> tuple[Step, ...]:
    """Steps that somebody reads, and in each the slots that it is the last to read."""
    live, kept = set(outputs), []
    for step in reversed(steps):
        if not step.equation.effects and live.isdisjoint(step.outputs):
            continue
        last = tuple({slot for slot in (*step.inputs, *step.outputs) if slot not in live})
        live.update(step.inputs)
        kept.append(replace(step, last=last))
    return tuple(reversed(kept))
