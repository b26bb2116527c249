"""`Program`: a function traced to a closed jaxpr, with its trees, donation and cost."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from m2ml.cost import Cost, cost_of
from m2ml.interpreter import Code, Equation, Keep, flatten

if TYPE_CHECKING:
    from jax.extend import core


@dataclass(frozen=True, eq=False)
class Program:
    """A traced function. ``in_tree`` and ``out_tree`` are the trees of its arguments ``(args, kwargs)`` and results.

    ``donated`` says, per input leaf, whether the engine may reuse its buffer. ``strict`` forbids running an
    equation anywhere but on the engine.
    """

    name: str
    jaxpr: core.ClosedJaxpr
    in_tree: jax.tree_util.PyTreeDef
    out_tree: jax.tree_util.PyTreeDef
    donated: tuple[bool, ...]
    strict: bool = False

    @cached_property
    def code(self) -> Code:
        """The program as one flat list of equations, ops as their definitions; see `m2ml.interpreter`."""
        return flatten(self.jaxpr)

    def code_with_ops(self, keep: Keep) -> Code:
        """`code` in which those calls of ops stay whole that ``keep(call, avals)`` gives a function to run with."""
        return flatten(self.jaxpr, keep)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of what the program computes: equal programs have equal fingerprints across processes."""
        digest = hashlib.sha256()
        _hash_code(self.code, digest.update)
        return digest.hexdigest()

    @cached_property
    def cost(self) -> Cost:
        """Floating-point operations, bytes that must move, and the peak of live bytes."""
        return cost_of(self.code)

    @cached_property
    def primitives(self) -> Mapping[str, int]:
        """How often each primitive occurs, bodies of loops counted once."""
        return Counter(equation.name for equation in self.code.equations())


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _hash_code(code: Code, update: Any) -> None:
    update(repr((code.inputs, code.outputs, [(a.shape, str(a.dtype)) for a in code.avals])).encode())
    for slot, value in sorted(code.constants.items()):
        update(f"{slot} {value.dtype} {value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    for step in code.steps:
        update(repr((step.inputs, step.outputs)).encode())
        _hash_equation(step.equation, update)


def _hash_equation(equation: Equation, update: Any) -> None:
    """All of it but the user's line."""
    update(equation.name.encode())
    for key, value in sorted(equation.params.items()):
        update(key.encode())
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Code):
                _hash_code(item, update)
            elif isinstance(item, Equation):
                _hash_equation(item, update)
            else:
                update(_ADDRESS.sub("", repr(item)).encode())
