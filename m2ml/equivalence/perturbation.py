"""What a correct engine may make of a program's numbers: each result moved by its rounding error, or flushed to zero.

A hook for the reference engine (Monte Carlo arithmetic; D. S. Parker, 1997).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.control import CONTROL_FLOW
from m2ml.equivalence.moves import blocks, held, moved, scaled
from m2ml.equivalence.overflow import inverse_of_power, may_overflow, product_with_inverse
from m2ml.equivalence.rounding import (
    ANY_ZERO,
    ARITHMETIC,
    BY_A_UNIT,
    COMPLEX_ROUNDED,
    CUT,
    EXACT,
    MOVES,
    ROUNDED,
    SUMS,
    tiny,
    unit,
)
from m2ml.equivalence.scales import Scales, finite_scales
from m2ml.interpreter import Equation

Array = np.ndarray[Any, Any]


class Flushing:
    """What an engine that takes subnormal numbers for zero sees. XLA's CPU does so in float32 and bfloat16, Metal may.

    MLX's CPU does not, and no engine known does in float16, whose least normal number, 6e-5, is not small. With
    ``chance`` half of them are taken for zero, and none by what only moves numbers: XLA's CPU takes one for zero where
    it compares it, and not where it stores it. Arrays that have none are remembered as long as they live: most are read
    several times.
    """

    def __init__(self, chance: np.random.Generator | None = None) -> None:
        self.chance = chance
        self._clean: dict[tuple[int, float], weakref.ref[Array]] = {}

    def seen(self, x: Array, dtype: Any, name: str) -> Array:
        """``x`` as primitive ``name`` sees it; ``x`` itself where it has no subnormal number."""
        if not unit(dtype) or dtype == np.float16 or (self.chance and name in MOVES):
            return x
        least = tiny(dtype) * (1 if name in ARITHMETIC else 4)
        known = self._clean.get((id(x), least))
        if known is not None and known() is x:
            return x
        parts = (x.real, x.imag) if np.iscomplexobj(x) else (x,)
        if any(_has_subnormal(part, least) for part in parts):
            zeroed = [np.where(self._taken(np.abs(part) < least), np.copysign(0.0, part), part) for part in parts]
            return np.asarray(zeroed[0] if len(zeroed) == 1 else np.stack(zeroed, -1).view(x.dtype)[..., 0])
        self._clean[id(x), least] = weakref.ref(x)
        return x

    def _taken(self, subnormal: Array) -> Array:
        return subnormal & (self.chance.random(subnormal.shape) < 0.5) if self.chance else subnormal

    def other_inputs(self, equation: Equation, inputs: Sequence[Array]) -> Iterator[list[Array]]:
        """What an engine may take ``inputs``, the reference's values, for: also all zeros for positive ones.

        The sign of a number that it takes for zero is kept by arithmetic; a formula may ask ``x < 0`` and find it is
        not.
        """
        seen = [self.seen(x, aval.dtype, equation.name) for x, aval in zip(inputs, equation.inputs, strict=True)]
        changed = any(x is not y for x, y in zip(inputs, seen, strict=True))
        if changed:
            yield seen
        if (changed and equation.name not in ARITHMETIC) or on_a_cut(equation, inputs):
            yield [np.asarray(x + 0.0) if x.dtype.kind in "fc" else x for x in seen]


def _has_subnormal(x: Array, least: float) -> bool:
    flat = x.reshape(-1)
    for block in blocks(flat.size):
        part = flat[block]
        small = np.abs(part) < least
        if np.count_nonzero(small) and np.count_nonzero(part[small]):
            return True
    return False


def on_a_cut(equation: Equation, inputs: Sequence[Array]) -> bool:
    """Whether an engine may ignore the signs of zeros."""
    return equation.name in CUT and np.iscomplexobj(inputs[0])


@dataclass(frozen=True)
class Perturbation:
    """Moves each equation's result by its error scale in a random direction.

    What it gives is rounded to the equation's dtype, as every engine holds it: numbers that become equal there, that
    overflow or that vanish do so here. With ``nearest`` a primitive that engines round correctly is rounded and not
    moved, so that what such a rounding decides (``x == y`` in bfloat16) is seen; with ``ideal`` every other one too, as
    an engine whose functions and sums had no error but their last rounding would. With ``flush`` subnormal numbers are
    taken for zero, zeros whose sign is left open have the other one, negative powers are one over positive ones, and
    quotients products with one over the divisor. With ``loses`` what a formula makes of subnormal numbers, where zero
    would give something else, may be anything; so may a sum or product that overflows in some order of its terms.
    """

    generator: np.random.Generator
    apply: Callable[[Equation, Sequence[Array]], Sequence[Array]]
    nearest: bool = False
    flush: Flushing | None = None
    scales: Scales | None = None
    ideal: bool = False
    loses: Flushing | None = None

    @classmethod
    def of_run(
        cls, number: int, generator: np.random.Generator, apply: Callable[..., Any], scales: Scales | None = None
    ) -> Perturbation:
        """That of one of several runs: every second rounds to nearest, the third loses, the fourth flushes.

        Those after them flush and lose by chance, so that what only some numbers do is seen as well.
        """
        chance = generator if number > 3 else None
        loses = Flushing(chance) if number == 2 or (chance and number % 2 == 0) else None
        flush = Flushing(chance) if number > 2 else None
        return cls(generator, apply, number % 2 == 1, flush, scales, number == 1, loses)

    def __call__(self, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> Sequence[Array]:
        results = self._moved(equation, inputs, outputs)
        return list(map(_other_zeros, results)) if self.flush and equation.name in ANY_ZERO else results

    def _moved(self, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> Sequence[Array]:
        if equation.name == "bitcast_convert_type":
            outputs = self._bits(equation, inputs, outputs)
        body = equation.name in CONTROL_FLOW  # whose equations were moved each
        if self.flush and not body:  # what reads the results takes their subnormal numbers for zero
            others = list(self.flush.other_inputs(equation, inputs))
            if others:
                inputs = others[int(self.generator.integers(len(others)))]
                outputs = self.apply(equation, inputs)
            for other in (inverse_of_power, product_with_inverse):
                result = other(equation, inputs, outputs[0]) if inputs else None
                outputs = outputs if result is None else [result]
        if self.loses and equation.name not in ARITHMETIC and not body:
            for seen in self.loses.other_inputs(equation, inputs):
                triples = zip(outputs, self.apply(equation, seen), equation.outputs, strict=True)
                outputs = [self._or_anything(y, lost(y, z, a.dtype)) if unit(a.dtype) else y for y, z, a in triples]
        if self.loses and equation.name in SUMS:
            over = may_overflow(equation, inputs, outputs[0], lambda *xs: self.apply(equation, xs))
            outputs = outputs if over is None else [self._or_anything(outputs[0], over)]
        if equation.name in EXACT and not (equation.name in COMPLEX_ROUNDED and np.iscomplexobj(inputs[0])):
            return outputs
        each = zip(outputs, equation.outputs, strict=True)
        if self.ideal or (self.nearest and equation.name in ROUNDED):
            return [held(y, aval.dtype) if unit(aval.dtype) else y for y, aval in each]
        if equation.name in BY_A_UNIT and not np.iscomplexobj(outputs[0]):
            return [scaled(y, aval.dtype, self.generator, u) if (u := unit(aval.dtype)) else y for y, aval in each]
        scale = self.scales.of if self.scales else finite_scales
        scales = scale(equation, inputs, outputs, lambda *xs: self.apply(equation, xs))
        if self.flush:  # what has become zero stays it, as an engine may have it that is right to the last place
            scales = [s if s is None else _unless_zero(y, s) for y, s in zip(outputs, scales, strict=True)]
        return [
            y if s is None else moved(y, s, aval.dtype, self.generator)
            for (y, aval), s in zip(each, scales, strict=True)
        ]

    def _or_anything(self, output: Array, where: Array) -> Array:
        """``output``, and NaN ``where`` it may be anything; by chance another number, since programs sort NaN out."""
        if not where.any():
            return output
        assert self.loses is not None
        chance = self.loses.chance
        return np.where(where, 100 * chance.standard_normal(output.shape) if chance else np.nan, output)

    def _bits(self, equation: Equation, inputs: Sequence[Array], outputs: Sequence[Array]) -> Sequence[Array]:
        """The bits of a NaN are nobody's (IEEE 754, 6.2): those of any number stand for them."""
        x, dtype = inputs[0], equation.inputs[0].dtype
        if x.dtype.kind != "f" or not np.isnan(x).any():
            return outputs
        byte = int(self.generator.integers(1, 0x70))
        other = np.frombuffer(bytes([byte] * np.dtype(dtype).itemsize), dtype).astype(x.dtype)
        return self.apply(equation, [np.where(np.isnan(x), other, x)])


def _unless_zero(output: Array, scale: Array) -> Array:
    return scale if np.count_nonzero(output) == output.size else np.where(output == 0, 0.0, scale)


def _other_zeros(x: Array) -> Array:
    """``x`` with zeros of the other sign: half of what an engine may make of those whose sign is left open."""
    zero = x == 0
    return np.where(zero, -x, x) if x.dtype.kind == "f" and zero.any() else x


def lost(output: Array, other: Array, dtype: Any) -> Array:
    """Where a formula that takes subnormal operands for zero in some of its steps may give anything.

    There its value at zero, ``other``, is not the value: XLA's CPU says -104 for the logarithm of 1e-39, -5.6e-16 for
    the cube root of 1e-45, and NaN for the angle of a point whose coordinates are subnormal.
    """
    with np.errstate(all="ignore"):
        same = (other == output) | (np.isnan(other) & np.isnan(output))
        return ~same & ~(np.abs(other - output) <= tiny(dtype))
