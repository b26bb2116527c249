"""Functions that differ only in an address space are one function on a CPU: the later ones are erased."""

from __future__ import annotations

from m2ml_kernels.metal_host.errors import InvalidMetal
from m2ml_kernels.metal_host.lexer import Token, closing, loud

_SPACES = {"device", "thread", "threadgroup", "constant"}


def drop_merged_overloads(tokens: list[Token]) -> None:
    """Erase each definition that repeats an earlier one of its scope but for address spaces."""
    _scope(loud(tokens))


def _scope(tokens: list[Token]) -> None:
    seen: dict[str, str] = {}
    start = index = 0
    while index < len(tokens):
        text = tokens[index].text
        if text in ("(", "["):
            index = _closing(tokens, index)
        elif text in (";", "") or (text == ":" and tokens[index - 1].text in ("public", "private", "protected")):
            start = index + 1
        elif text == "{":
            end = _closing(tokens, index)
            head = tokens[start:index]
            index = _definition(tokens, start, index, end, head, seen)
            start = index + 1
        index += 1


def _definition(tokens: list[Token], start: int, brace: int, end: int, head: list[Token], seen: dict[str, str]) -> int:
    """Deal with one braced item; give the index of its last token."""
    words = [token.text for token in head]
    if "enum" in words:
        return end
    kind = next((word for word in words if word in ("struct", "class", "union", "namespace")), None)
    if kind and (kind == "namespace" or _is_type(head)):
        _scope(tokens[brace + 1 : end])
        if kind == "namespace":
            return end
    while end + 1 < len(tokens) and tokens[end + 1].text in ("{", ","):  # brace initializers of members
        end = _closing(tokens, end + 1) if tokens[end + 1].text == "{" else end + 1
    original, merged = _signature(head)
    if original != merged and merged in seen and seen[merged] != original:
        last = end + 1 if end + 1 < len(tokens) and tokens[end + 1].text == ";" else end
        for token in tokens[start : last + 1]:
            token.erase()
    seen.setdefault(merged, original)
    return end


def _is_type(head: list[Token]) -> bool:
    """Whether a head with struct in it defines the struct: no parameter list follows its name."""
    return not any(token.text == ")" for token in head)


def _signature(head: list[Token]) -> tuple[str, str]:
    """A definition's head, without its member initializers: as it stands, and with address spaces merged."""
    original: list[str] = []
    merged: list[str] = []
    depth = 0
    for index, token in enumerate(head):
        depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == ":" and depth == 0 and index and _ends_parameters(head, index):
            break
        original.append(token.text)
        word = "const" if token.text == "constant" else token.text
        if word == "const" and merged[-1:] == ["const"]:
            continue
        if word not in _SPACES:
            merged.append(word)
    return " ".join(original), " ".join(_constant_methods(merged, original))


def _constant_methods(merged: list[str], original: list[str]) -> list[str]:
    """A method of constant objects is the const method; ``f() constant`` and ``f() const constant`` read alike.

    A constructor has no const form, so there the word goes."""
    if merged[-1:] == ["const"] and original[-1] == "constant" and original[-2:-1] != ["const"]:
        return merged[:-1]
    return merged


def _ends_parameters(head: list[Token], index: int) -> bool:
    return any(token.text == ")" for token in head[:index])


def _closing(tokens: list[Token], start: int) -> int:
    try:
        return closing(tokens, start)
    except InvalidMetal:  # a bracket whose partner stands in a macro, or another branch of #if
        return len(tokens) - 1
