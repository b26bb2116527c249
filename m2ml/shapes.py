"""Shape strings: ``"x[*b n], weight[n] -> [*b n]"`` says what shapes an op takes, and its errors come from it.

An argument is a name and its axes in brackets: a name binds the size of an axis, ``*name`` any number of axes, a
number is itself, ``_`` is any size and ``...`` any axes. ``mask?[...]`` may be left out. Arguments that the string
does not mention are the op's own business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

_ARGUMENT = re.compile(r"(\w*)(\??)\[([^\]]*)\]")


@dataclass(frozen=True)
class Axes:
    """The axes of one argument or result."""

    name: str
    optional: bool
    tokens: tuple[str, ...]

    @property
    def variadic(self) -> str | None:
        """The token that stands for any number of axes."""
        return next((t for t in self.tokens if t.startswith("*") or t == "..."), None)

    @property
    def leading(self) -> str | None:
        """The name of the axes in front, when they may be any number: an op takes more of them as they come."""
        return self.tokens[0] if self.tokens and self.tokens[0].startswith("*") else None

    def __str__(self) -> str:
        return f"{self.name}[{' '.join(self.tokens)}]"


@dataclass(frozen=True)
class Shapes:
    """A parsed shape string."""

    text: str
    inputs: Mapping[str, Axes]
    outputs: tuple[Axes, ...]

    def check(self, op: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes the shapes of ``arrays`` bind, by token. Raises ValueError or TypeError with one sentence."""
        sizes: dict[str, tuple[Any, str]] = {}
        for name, axes in self.inputs.items():
            value = arrays.get(name)
            if value is None and axes.optional:
                continue
            if value is None:
                raise ValueError(f"{op}: {name} is missing; it takes {axes}")
            if not hasattr(value, "shape"):
                raise TypeError(f"{op}: {name} is a {type(value).__name__}; it takes an array {axes}")
            for token, size in _aligned(op, axes, tuple(value.shape)):
                self._bind(op, sizes, token, size, f"{name}{list(value.shape)}")
        return {token: size for token, (size, _) in sizes.items()}

    def _bind(self, op: str, sizes: dict[str, tuple[Any, str]], token: str, size: Any, where: str) -> None:
        if token in ("_", "..."):
            return
        if token.isdigit():
            if size != int(token):
                raise ValueError(f"{op}: {where} must have {token} where it has {size}; shapes are {self.text}")
            return
        known, first = sizes.setdefault(token, (size, where))
        if known != size:
            said = [f"{list(s)}" if isinstance(s, tuple) else f"{s}" for s in (known, size)]
            what = token.removeprefix("*")
            raise ValueError(f"{op}: {what} is {said[0]} in {first} but {said[1]} in {where}; shapes are {self.text}")


def _aligned(op: str, axes: Axes, shape: Shape) -> list[tuple[str, Any]]:
    """Each token of ``axes`` with the size, or sizes, that it stands for in ``shape``."""
    tokens, variadic = axes.tokens, axes.variadic
    if variadic is None:
        if len(shape) != len(tokens):
            raise ValueError(f"{op}: {axes.name} has {len(shape)} axes {list(shape)}; it takes {axes}")
        return list(zip(tokens, shape, strict=True))
    place, after = tokens.index(variadic), len(tokens) - tokens.index(variadic) - 1
    if len(shape) < place + after:
        raise ValueError(f"{op}: {axes.name} has {len(shape)} axes {list(shape)}; it takes {axes}")
    middle = shape[place : len(shape) - after]
    rest = zip(tokens[place + 1 :], shape[len(shape) - after :], strict=True)
    return [*zip(tokens[:place], shape, strict=False), (variadic, middle), *rest]


def parse(text: str) -> Shapes:
    """Parse a shape string. Raises ValueError when it is not one.

    >>> sorted(parse("x[*b n], weight[n] -> [*b n]").inputs)
    ['weight', 'x']
    """
    before, arrow, after = text.partition("->")
    if not arrow:
        raise ValueError(f"a shape string is written like x[*b n] -> [*b n]; got {text}")
    inputs = [Axes(name, bool(optional), tuple(axes.split())) for name, optional, axes in _ARGUMENT.findall(before)]
    outputs = [Axes(name, False, tuple(axes.split())) for name, _, axes in _ARGUMENT.findall(after)]
    for axes in (*inputs, *outputs):
        if sum(t.startswith("*") or t == "..." for t in axes.tokens) > 1:
            raise ValueError(f"{axes} has more than one token for any number of axes")
    return Shapes(text, {axes.name: axes for axes in inputs}, tuple(outputs))


def shared_leading(shapes: Shapes, mapped: Sequence[str], present: Sequence[str]) -> Sequence[str] | None:
    """The arguments that may take one more axis in front together, when ``mapped`` all can; else None."""
    able = [name for name in present if name in shapes.inputs and shapes.inputs[name].leading]
    names = {shapes.inputs[name].leading for name in able}
    outputs = {axes.leading for axes in shapes.outputs}
    if len(names) != 1 or outputs != names or not set(mapped) <= set(able):
        return None
    return able
