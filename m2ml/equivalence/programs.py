"""Random programs: a hypothesis strategy for typed graphs of every primitive that has a generated case.

A program is a list of statements. A statement is a case of one primitive, or a block: a smaller list of statements
under ``grad``, ``jvp``, ``vmap``, ``checkpoint``, ``scan``, ``while_loop``, ``cond``, ``switch``, ``fori_loop`` or
``map``. A statement reads earlier values, converted and reshaped to what it takes, beside arrays of its own, which
are the inputs of the program. What nobody reads is the result.

Needs hypothesis (the extra ``m2ml[kit]``).
"""

from __future__ import annotations

import functools
import random
import unittest
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

import m2ml.ops  # noqa: F401 - registers the ops that come with m2ml
from m2ml.equivalence.primitives.cases import Case, load
from m2ml.equivalence.primitives.values import Draw, one_of
from m2ml.equivalence.statements import BLOCKS, Argument, Block, Call, Mixed, Own, Read, Statement, Values
from m2ml.op import Sample, ops
from m2ml.precision import is_float

Array = np.ndarray[Any, Any]

#: What the name of an op begins with, to tell it from a primitive's.
OP = "m2ml."

#: Primitives that call back into Python: what they do cannot be written down.
CALLBACKS = frozenset({"debug_callback", "debug_print", "io_callback", "pure_callback"})

#: Primitives that XLA's CPU compiles alone, not beside others (tests/upstream/test_upstream_xla_compiler.py).
ALONE = frozenset({"mulhi"})

#: How many primitives the programs of one batch are made of.
PALETTE = 24

#: A statement ends the program in one of so many cases; a block's body in one of two.
_MEAN_STATEMENTS = 6

#: Primitives whose arguments have a meaning (a triangular matrix, probabilities, numbers without ties): an argument
#: stays the one that the generator made, and an earlier value moves it by less than a hundredth.
GENTLE = frozenset(
    """approx_top_k cholesky cholesky_update digamma eig eigh hessenberg householder_product igamma igamma_grad_a
    igammac lgamma lu multiply_add ormqr polygamma qr random_gamma random_gamma_grad regularized_incomplete_beta
    scaled_dot schur select_and_gather_add select_and_scatter_add svd symmetric_product triangular_solve tridiagonal
    tridiagonal_solve zeta""".split()
)

#: Arguments, by position, that stay as the generator made them: indices that are promised to be in bounds, updates of
#: one element that must be equal, sizes that must add up, and orders that must be whole numbers.
KEPT: Mapping[str, frozenset[int]] = {
    "gather": frozenset({1}),
    "lu_pivots_to_permutation": frozenset({0}),
    "polygamma": frozenset({0}),
    "ragged_dot": frozenset({2}),
    "ragged_dot_general": frozenset({2}),
    "scatter": frozenset({1, 2}),
    **dict.fromkeys(("scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max"), frozenset({1})),
    "select_n": frozenset({0}),
}


#: Primitives whose second argument, where it is whole, stays as the generator made it: one that is computed may be the
#: constant 0, of which XLA's compiler dies (tests/upstream/test_upstream_xla_compiler.py).
DIVISIONS = frozenset({"div", "rem"})

#: Primitives that earlier values reach without NaN, infinities and -0: whether an engine multiplies the zeros it pads
#: with is left open, and so is the sign of a NaN that is computed (IEEE 754, 6.3; x86 sets it, arm64 does not) and of
#: some zeros, which these see. Their own cases hold NaN of either sign, on which every engine must agree.
FINITE = frozenset("bitcast_convert_type conv_general_dilated eq_to le_to lt_to top_k".split())

#: Arguments that stay above a number: the derivative of digamma is JAX's zeta function, which is wrong below -8
#: (tests/upstream/test_upstream_zeta.py).
ABOVE: Mapping[str, float] = {"digamma": -7.0}


@dataclass(frozen=True, eq=False)
class RandomProgram:
    """A function of arrays and the arrays to call it with. ``str()`` of it is the tree of its statements."""

    statements: tuple[Statement, ...]
    outputs: tuple[int, ...]
    arrays: tuple[Array, ...]

    def __call__(self, *inputs: Any) -> list[Any]:
        values: list[Any] = []
        for statement in self.statements:
            values += statement.run(values, inputs)
        return [values[i] for i in self.outputs]

    def __str__(self) -> str:
        return "; ".join(map(str, self.statements))

    @property
    def blocks(self) -> Counter[str]:
        """How often each kind of block occurs."""
        return Counter(s.kind for s in self.statements if isinstance(s, Block))


def palette(rng: random.Random, counts: Mapping[str, int], rare: frozenset[str] = frozenset()) -> list[str]:
    """Primitives for the programs of one batch, the seldom ones first; ``rare`` ones a fiftieth as often.

    Programs of few primitives at a time reach more of what those do together (swarm testing; Groce and others, 2012),
    and hypothesis prefers the first ones of a list.
    """

    def key(name: str) -> float:
        weight = (0.02 if name in rare else 1.0) / (counts.get(name, 0) + 1)
        return float(rng.random() ** (1 / weight))  # weighted sampling without replacement (Efraimidis and Spirakis)

    return sorted(drawable(), key=key, reverse=True)[:PALETTE]


def drawable() -> list[str]:
    """Every primitive that a program may hold."""
    return sorted(set(load()) - CALLBACKS - ALONE)


def drawable_ops() -> list[str]:
    """Every op that a program may hold, as ``m2ml.rms_norm``."""
    return sorted(f"{OP}{name}" for name in ops if _samples(name))


@functools.cache
def _samples(op: str) -> tuple[Sample, ...]:
    return tuple(ops[op].samples())


def case_of(draw: Draw, name: str) -> Case:
    """A generated case of a primitive, or a sample of an op, as a function of its arrays."""
    if not name.startswith(OP):
        return load()[name](draw, name)
    op = name.removeprefix(OP)
    sample = one_of(draw, *_samples(op))
    leaves, tree = jax.tree.flatten(sample.args)
    return lambda *xs: ops[op](*jax.tree.unflatten(tree, xs), **sample.static), [np.asarray(x) for x in leaves]


@st.composite
def programs(draw: Draw, names: Sequence[str] = ()) -> RandomProgram:
    """A random program of the primitives ``names``; of every one if not given."""
    builder = _Builder(draw, names or drawable(), [])
    builder.grow(_MEAN_STATEMENTS)
    return RandomProgram(tuple(builder.statements), builder.unread(), tuple(builder.arrays))


@dataclass
class _Builder:
    """Draws statements one after the other. ``arrays`` are the program's inputs, shared with the bodies of blocks."""

    draw: Draw
    names: Sequence[str]
    arrays: list[Array]
    statements: list[Statement] = field(default_factory=list)
    avals: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    read: set[int] = field(default_factory=set)

    def grow(self, mean: int) -> None:
        """Add one statement or more, ``mean`` on average."""
        self.add(self.call())
        while self.draw(st.integers(0, mean - 1)) and len(self.statements) < 4 * mean:
            block = mean == _MEAN_STATEMENTS and self.draw(st.integers(0, 3)) == 3
            self.add(self.block() if block else self.call())

    def add(self, statement: Statement) -> None:
        self.statements.append(statement)
        self.avals += statement.avals

    def unread(self) -> tuple[int, ...]:
        """Values that no statement reads; there always is one, since the last statement's are among them."""
        return tuple(i for i in range(len(self.avals)) if i not in self.read)

    # cases ------------------------------------------------------------------------------------------

    def call(self) -> Call:
        """A case of one primitive on its own arrays and earlier values."""
        name = self.draw(st.sampled_from(self.names))
        try:
            function, arrays = case_of(self.draw, name)
        except unittest.SkipTest:
            reject()
        tame = self.draw(st.integers(0, 3)) < 3
        arrays = [tamed(np.asarray(x)) if tame else np.asarray(x) for x in arrays]
        if name in ABOVE:
            arrays = [np.maximum(x, np.asarray(ABOVE[name], x.dtype)) for x in arrays]
        arguments = tuple(self.argument(name, i, x) for i, x in enumerate(arrays))
        call = Call(name, function, arguments).typed(arrays)
        if not call.avals:  # an optimizer's step on no leaves
            reject()
        return call

    def argument(self, name: str, position: int, array: Array) -> Argument:
        if not self.avals or position in KEPT.get(name, ()) or self.draw(st.integers(0, 3)) == 0:
            return self.own(array)
        gentle = name in GENTLE or name.startswith(OP)
        if gentle and not is_float(array.dtype):
            return self.own(array)
        if name in DIVISIONS and position == 1 and np.issubdtype(array.dtype, np.integer):
            return self.own(array)
        index = self.earlier()
        if array.size and 0 in self.avals[index].shape:  # filled up with zeros it would be a constant
            return self.own(array)
        read = self.reading(index, array.shape, array.dtype, finite=gentle or name in FINITE)
        return Mixed(self.own(array), read) if gentle else read

    def own(self, array: Array) -> Own:
        self.arrays.append(array)
        return Own(len(self.arrays) - 1)

    def earlier(self) -> int:
        """An earlier value, most often the last."""
        back = min(self.draw(st.sampled_from((0, 0, 0, 1, 1, 2, 3, 5, 8))), len(self.avals) - 1)
        return len(self.avals) - 1 - back

    def reading(self, index: int, shape: Sequence[int], dtype: Any, *, finite: bool) -> Read:
        """That value as an array of this shape and dtype."""
        self.read.add(index)
        turned, bounded = self.draw(st.booleans()), self.draw(st.booleans())
        return Read(index, tuple(shape), np.dtype(dtype), turned, bounded, finite)

    # blocks -----------------------------------------------------------------------------------------

    def block(self) -> Statement:
        """Statements under a transformation or in a loop; as they are where JAX cannot transform them."""
        kind = self.draw(st.sampled_from(sorted(BLOCKS)))
        arguments = tuple(self.whole() for _ in range(self.draw(st.integers(1, 2))))
        wanted = self.draw(st.integers(2, 3)) if kind == "switch" else 2 if kind == "cond" else 1
        bodies = tuple(self.body([self.avals[a.index] for a in arguments]) for _ in range(wanted))
        count = self.draw(st.integers(0, 3))
        block = Block(kind, bodies, arguments, count)
        try:
            return block.typed(self.avals, self.arrays)
        except (TypeError, ValueError, NotImplementedError):
            return Block("checkpoint", bodies[:1], arguments, count).typed(self.avals, self.arrays)

    def whole(self) -> Read:
        """An earlier value as it is."""
        index = len(self.avals) - 1 - self.draw(st.integers(0, min(len(self.avals), 4) - 1))
        self.read.add(index)
        return Read(index, tuple(self.avals[index].shape), np.dtype(self.avals[index].dtype), False, False)

    def body(self, avals: Sequence[jax.ShapeDtypeStruct]) -> Callable[[Values, Values], list[Any]]:
        inner = _Builder(self.draw, self.names, self.arrays, [], list(avals))
        inner.grow(2)
        made = tuple(inner.statements)
        results = tuple(i for i in inner.unread() if i >= len(avals)) or (len(inner.avals) - 1,)

        def run(values: Values, inputs: Values) -> list[Any]:
            env = list(values)
            for statement in made:
                env += statement.run(env, inputs)
            return [env[i] for i in results]

        run.__name__ = "; ".join(map(str, made))
        return run


def tamed(x: Array) -> Array:
    """``x`` without NaN, infinities and numbers so large that a few products overflow."""
    if not (is_float(x.dtype) or x.dtype.kind == "c"):
        return x
    with np.errstate(all="ignore"):
        small = np.abs(x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)) < 1e3
    return np.where(small, x, np.full_like(x, 0.75))
