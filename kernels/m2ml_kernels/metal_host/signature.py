"""What a kernel is called with: its parameters, read from the source; no types are parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2ml_kernels.metal_host.errors import InvalidMetal, UnsupportedMetal
from m2ml_kernels.metal_host.lexer import Token, closing, loud, split_commas, tokenize

# The attributes of a kernel's parameters and the type MLX declares each with, in alphabetical order.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: where its value comes from. ``index`` is a buffer's number, a threadgroup memory's number,
    or the place of an attribute in `ATTRIBUTES`. What depends on a function constant is ``optional``."""

    name: str
    source: Literal["buffer", "threadgroup", "attribute"]
    index: int
    optional: bool = False


@dataclass(frozen=True)
class Signature:
    """A kernel function's name and parameters."""

    name: str
    parameters: tuple[Parameter, ...]

    def indices(self, source: str) -> list[int]:
        return sorted(parameter.index for parameter in self.parameters if parameter.source == source)

    def required(self) -> list[int]:
        """The buffers that must be given."""
        return sorted(p.index for p in self.parameters if p.source == "buffer" and not p.optional)

    def buffer_names(self) -> dict[int, str]:
        return {parameter.index: parameter.name for parameter in self.parameters if parameter.source == "buffer"}


def kernels_in(source: str) -> dict[str, Signature]:
    """Every kernel function of ``source`` by name."""
    tokens = loud(tokenize(source))
    found = {}
    for index, token in enumerate(tokens[:-1]):
        if token.kind == "name" and tokens[index + 1].text == "(" and _is_kernel(tokens, index):
            end = closing(tokens, index + 1)
            parts = split_commas(tokens[index + 2 : end])
            if end + 1 < len(tokens) and tokens[end + 1].text == "{":
                found[token.text] = Signature(token.text, _parameters(token.text, parts))
    return found


def find_kernel(source: str, name: str, file: str) -> Signature:
    """The kernel called ``name``. Raises `InvalidMetal` when there is none, naming those that there are."""
    found = kernels_in(source)
    if name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise InvalidMetal(f"{file} has no kernel {name}; its kernels: {there}")
    return found[name]


def _is_kernel(tokens: list[Token], index: int) -> bool:
    """Whether the function named at ``index`` is ``kernel void`` or ``[[kernel, ...]] void``."""
    if index < 2 or tokens[index - 1].text != "void":
        return False
    before = index - 2
    if tokens[before].text != "]":
        return tokens[before].text == "kernel"
    while before and (tokens[before].text, tokens[before - 1].text) != ("[", "["):
        before -= 1
    return any(token.text == "kernel" for token in tokens[before:index])


def _parameters(kernel: str, parts: list[list[Token]]) -> tuple[Parameter, ...]:
    out: list[Parameter] = []
    for part in parts:
        taken = {parameter.index for parameter in out if parameter.source == "buffer"}
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        out.append(_parameter(kernel, part, free))
    return tuple(out)


def _parameter(kernel: str, part: list[Token], free: int) -> Parameter:
    start = next((i for i, t in enumerate(part[:-1]) if t.text == "[" and part[i + 1].text == "["), len(part))
    declared = part[:start]
    name = declared[-1].text if declared and declared[-1].kind == "name" else ""
    words = {token.text for token in declared}
    attributes = split_commas(part[start + 2 : -2])
    optional = any(attribute[0].text == "function_constant" for attribute in attributes)
    for attribute in attributes:
        text = attribute[0].text
        if text in ("buffer", "threadgroup") and len(attribute) >= 4:
            number = attribute[2].text
            if not number.isdigit():
                raise InvalidMetal(
                    f"line {attribute[0].line}: the number of {text}({number}) must be an integer literal"
                )
            return Parameter(name, "buffer" if text == "buffer" else "threadgroup", int(number), optional)
        if text in ATTRIBUTES:
            return Parameter(name, "attribute", list(ATTRIBUTES).index(text))
        if text in ("texture", "sampler"):
            what = next(token.text for token in declared if token.text != "const")
            raise UnsupportedMetal(
                f"line {attribute[0].line}: {what} is not supported: only compute kernels on buffers are"
            )
        if text not in ("function_constant", "maybe_unused"):
            raise InvalidMetal(f"line {attribute[0].line}: {text} is no attribute of a compute kernel's parameter")
    if words & {"*", "&"} and "threadgroup" not in words:
        return Parameter(name, "buffer", free)
    line = part[0].line
    raise InvalidMetal(
        f"line {line}: the parameter {name or part[-1].text} of {kernel} has no attribute that says what it is"
    )
