"""Tokens of Metal source. Joined, their texts give the source back, so an edit never moves a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from m2ml_kernels.metal_host.errors import InvalidMetal

_TOKEN = re.compile(
    r"""
    (?P<space>(?:[^\S\n]|\\\n)+|\n)
  | (?P<comment>//(?:\\\n|[^\n])*|/\*.*?\*/)
  | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<mark>::|->|\+\+|--|<<=|>>=|[-+*/%&|^=!<>]=|\.\.\.|&&|\|\||<<|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"^[^\S\n]*\#(?:/\*.*?\*/|\\\n|[^\n])*", re.MULTILINE | re.DOTALL)
_QUIET = ("space", "comment", "directive")


@dataclass(slots=True)
class Token:
    """A piece of source: its kind, its text (which edits replace), and the line it begins on, from 1."""

    kind: str
    text: str
    line: int

    @property
    def quiet(self) -> bool:
        """Whether the token stands for nothing: white space, a comment, a whole preprocessor line."""
        return self.kind in _QUIET

    def erase(self) -> None:
        self.text = ""


def tokenize(source: str, *, directives: bool = True, line: int = 1) -> list[Token]:
    """The tokens of ``source``, which begins on ``line``; each preprocessor line is one token of kind ``directive``."""
    tokens: list[Token] = []
    position = 0
    while position < len(source):
        found = _DIRECTIVE.match(source, position) if directives and _starts_line(source, position) else None
        kind = "directive" if found else ""
        if not found:
            found = _TOKEN.match(source, position)
            assert found is not None  # the last alternative takes any character
            kind = found.lastgroup or ""
        tokens.append(Token(kind, found[0], line))
        line += found[0].count("\n")
        position = found.end()
    return tokens


def _starts_line(source: str, position: int) -> bool:
    return position == 0 or source[position - 1] == "\n"


def text_of(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def loud(tokens: Sequence[Token]) -> list[Token]:
    """The tokens that mean something."""
    return [token for token in tokens if not token.quiet]


_PAIRS = {"(": ")", "[": "]", "{": "}"}
_CLOSING = set(_PAIRS.values())


def closing(tokens: Sequence[Token], start: int) -> int:
    """The index of the bracket that closes the one at ``start``."""
    expected: list[str] = []
    for index in range(start, len(tokens)):
        text = tokens[index].text
        if tokens[index].kind != "mark":
            continue
        if text in _PAIRS:
            expected.append(_PAIRS[text])
        elif text in _CLOSING:
            if not expected or expected.pop() != text:
                break
            if not expected:
                return index
    raise InvalidMetal(f"line {tokens[start].line}: the bracket {tokens[start].text} is never closed")


def split_commas(tokens: Sequence[Token]) -> list[list[Token]]:
    """``tokens`` cut at the commas that no bracket encloses; ``<`` and ``>`` count as brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "mark":
            depth += (token.text in "([{<") - (token.text in ")]}>")
            if token.text == "," and depth == 0:
                parts.append([])
                continue
        parts[-1].append(token)
    return [part for part in parts if part]
