"""Metal source to C++17, token by token, every line where it was.

What differs from C++ is little: address spaces, attributes, threadgroup variables, unsuffixed literals that are float,
swizzles, and functions that differ only in an address space. Everything else is the work of the shim headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from m2ml_kernels.metal_host.errors import InvalidMetal, UnsupportedMetal
from m2ml_kernels.metal_host.lexer import Token, closing, loud, split_commas, text_of, tokenize
from m2ml_kernels.metal_host.overloads import drop_merged_overloads

_EMPTY_SPACES = {"device", "thread", "threadgroup", "kernel", "threadgroup_imageblock", "ray_data", "object_data"}
_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_COMPONENTS = {**dict(zip("xyzw", range(4), strict=True)), **dict(zip("rgba", range(4), strict=True))}
STATEMENT_ENDS = {";", "{", "}", ":", ""}  # the last: a statement that was rewritten already
_ASSIGNING = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=", "++", "--"}
_UNSUPPORTED = re.compile(
    r"(?:texture|depth)(?:1d|2d|3d|cube|_buffer)\w*|sampler|tensor|tensor_\w+|cooperative_tensor|imageblock\w*"
    r"|visible_function_table|intersect\w+_table|acceleration_structure|intersector|command_buffer|mesh|fragment|vertex"
)
_HEADER = re.compile(r'\s*#\s*(?:include|import)\s*([<"])([^>"]+)[>"]')
_KNOWN_HEADERS = re.compile(r"metal_\w+|simd/simd\.h|metal_stdlib")
_UNSUPPORTED_HEADERS = re.compile(r"metal_(?:tensor|cooperative_tensor)|Metal\w+/.*")

FindHeader = Callable[[str], str | None]


def rewrite(
    source: str, *, find_header: FindHeader = lambda name: None, instantiate: bool = False, own: bool = True
) -> str:
    """``source`` as C++ for the shim; as many lines, each where it was.

    ``find_header`` maps the name of a quoted header to the path of its rewritten copy, or to None. ``instantiate``
    keeps explicit instantiations of kernels, which are otherwise dropped. ``own`` says that the source is the kernel's
    own, in which unsupported parts of Metal are named; in headers they may stand unused.
    """
    tokens = tokenize(source)
    if own:
        refuse_unsupported(tokens)
    for token in tokens:
        if token.kind == "directive":
            token.text = _directive(token, find_header, instantiate)
    _refuse_swizzle_members(tokens)
    drop_merged_overloads(tokens)
    if not instantiate:
        drop_instantiations(tokens)
    _threadgroup_variables(tokens)
    _rewrite_tokens(tokens)
    return text_of(tokens)


def refuse_unsupported(tokens: list[Token]) -> None:
    """Raise `UnsupportedMetal` for the first name of a part of Metal that the host does not run."""
    meaning = loud(tokens)
    for index, token in enumerate(meaning):
        if token.kind != "name" or not _UNSUPPORTED.fullmatch(token.text):
            continue
        following = meaning[index + 1].text if index + 1 < len(meaning) else ""
        declares = following == "<" or token.text in ("sampler", "acceleration_structure", "command_buffer")
        entry = token.text in ("mesh", "fragment", "vertex") and following in ("void", "float4", "half4")
        if (declares and not (index and meaning[index - 1].text in (".", "->"))) or entry:
            raise UnsupportedMetal(
                f"line {token.line}: {token.text} is not supported: only compute kernels on buffers are"
            )


def _directive(token: Token, find_header: FindHeader, instantiate: bool) -> str:
    text = token.text
    if header := _HEADER.match(text):
        return _include(header[2], header[1] == "<", token.line, find_header) + "\n" * text.count("\n")
    word = text.replace("#", " ", 1).split(None, 1)
    if word[:1] == ["pragma"] and "once" not in text:
        return "\n" * text.count("\n")
    if word[:1] != ["define"]:
        return text
    body = tokenize(text, directives=False, line=token.line)
    if not instantiate:
        drop_instantiations(body)
    _rewrite_tokens(body)
    return text_of(body)


def _include(name: str, angled: bool, line: int, find_header: FindHeader) -> str:
    if _UNSUPPORTED_HEADERS.fullmatch(name):
        raise UnsupportedMetal(
            f"line {line}: the header <{name}> is not supported: only compute kernels on buffers are"
        )
    if angled and _KNOWN_HEADERS.fullmatch(name):
        return "#include <metal_stdlib>"
    if path := find_header(name):
        return f'#include "{path}"'
    brackets = "<>" if angled else '""'
    raise InvalidMetal(f"line {line}: the header {brackets[0]}{name}{brackets[1]} was not found")


def drop_instantiations(tokens: list[Token]) -> None:
    """Erase ``template [[host_name(...)]] ... ;``: only the kernel that is asked for is compiled."""
    meaning = [token for token in tokens if not token.quiet]
    index = 0
    while index + 2 < len(meaning):
        if [token.text for token in meaning[index : index + 3]] == ["template", "[", "["]:
            end = index
            while end < len(meaning) and meaning[end].text != ";":
                end += 1
            for token in meaning[index : end + 1]:
                token.erase()
            index = end
        index += 1


def _rewrite_tokens(tokens: list[Token]) -> None:
    meaning = [token for token in tokens if not token.quiet and token.text]
    _attributes(meaning)
    _coherent(meaning)
    _pragmas_in_macros(meaning)
    meaning = [token for token in meaning if token.text]
    for index, token in enumerate(meaning):
        before = meaning[index - 1].text if index else ""
        after = meaning[index + 1].text if index + 1 < len(meaning) else ""
        if token.kind == "number":
            token.text = float_literal(token.text)
        elif token.text == "constant":
            token.text = "" if {"const", "constexpr"} & {before, after} or before == ")" else "const"
        elif token.text in _EMPTY_SPACES and token.kind == "name":
            token.erase()
        elif before in (".", "->") and token.kind == "name" and _SWIZZLE.fullmatch(token.text) and after != "(":
            chosen = ", ".join(str(_COMPONENTS[letter]) for letter in token.text)
            token.text = f"template {'swizzle_ref' if after in _ASSIGNING else 'swizzle'}<{chosen}>()"


def float_literal(text: str) -> str:
    """A number as C++ spells it: an unsuffixed floating literal is float, ``h`` makes a half and ``bf`` a bfloat."""
    lower = text.lower()
    hexadecimal = lower.startswith("0x")
    if not (("p" in lower) if hexadecimal else ("." in text or re.fullmatch(r"\d+e[+-]?\d+[a-z]*", lower))):
        return text
    if lower.endswith("bf"):
        return f"bfloat({text[:-2]}f)"
    if lower.endswith("h"):
        return f"half({text[:-1]}f)"
    return text if lower.endswith("f") and not (hexadecimal and "p" not in lower) else text + "f"


def _attributes(meaning: list[Token]) -> None:
    """Erase ``[[...]]``; a function constant gets its value."""
    index = 0
    while index + 1 < len(meaning):
        if meaning[index].text == "[" and meaning[index + 1].text == "[":
            end = closing(meaning, index)
            words = [token.text for token in meaning[index + 2 : end - 1]]
            for token in meaning[index : end + 1]:
                token.erase()
            if words[:1] == ["function_constant"]:
                meaning[index].text = f"= m2_function_constant<{''.join(words[2:-1])}>()"
            index = end
        index += 1


def _coherent(meaning: list[Token]) -> None:
    """Erase ``coherent(system)``: a CPU's memory is."""
    for index, token in enumerate(meaning):
        if token.text == "coherent":
            end = closing(meaning, index + 1) if meaning[index + 1].text == "(" else index
            for part in meaning[index : end + 1]:
                part.erase()


def _pragmas_in_macros(meaning: list[Token]) -> None:
    for index, token in enumerate(meaning):
        if token.text == "_Pragma" and index + 3 < len(meaning):
            for part in meaning[index : index + 4]:
                part.erase()


def _threadgroup_variables(tokens: list[Token]) -> None:
    """``threadgroup T a[N], b;`` as a statement becomes references into the threadgroup's memory."""
    meaning = loud(tokens)
    for index, token in enumerate(meaning):
        if token.text != "threadgroup" or (index and meaning[index - 1].text not in STATEMENT_ENDS):
            continue
        end = index
        while end < len(meaning) and meaning[end].text not in (";", "{"):
            end += 1
        statement = [part for part in meaning[index + 1 : end] if part.text]
        if end == len(meaning) or meaning[end].text == "{" or is_pointer(statement):
            continue
        first, *rest = split_commas(statement)
        cut = _declarator_start(first)
        kind = " ".join(part.text for part in first[:cut])
        declared = [_threadgroup_reference(kind, part) for part in (first[cut:], *rest)]
        for part in meaning[index : end + 1]:
            part.erase()
        token.text = " ".join(declared)


def is_pointer(statement: list[Token]) -> bool:
    depth = 0
    for token in statement:
        depth += (token.text in ("<", "[", "(")) - (token.text in (">", "]", ")"))
        if depth == 0 and token.text in ("*", "&", "=", "("):
            return True
    return False


def _declarator_start(declaration: list[Token]) -> int:
    """Where the first declarator begins: its name is the last one before the array bounds."""
    end = next((i for i, token in enumerate(declaration) if token.text == "["), len(declaration))
    return end - 1


def _threadgroup_reference(kind: str, declarator: list[Token]) -> str:
    name, bounds = declarator[0], "".join(token.text for token in declarator[1:])
    declared = f"(&{name.text}){bounds}" if bounds else f"&{name.text}"
    cast = f"{kind}(*){bounds}" if bounds else f"{kind}*"
    return (
        f'{kind} {declared} = *({cast})m2::threadgroup_variable<{kind}{bounds}>("{name.text}", __FILE__, {name.line});'
    )


def _refuse_swizzle_members(tokens: list[Token]) -> None:
    """A struct's member whose name reads as a swizzle cannot be told from one."""
    meaning = loud(tokens)
    inside: list[bool] = []
    for index, token in enumerate(meaning):
        if token.text == "{":
            inside.append(_opens_struct(meaning, index))
        elif token.text == "}" and inside:
            inside.pop()
        elif inside and inside[-1] and token.kind == "name" and _SWIZZLE.fullmatch(token.text):
            following = meaning[index + 1].text if index + 1 < len(meaning) else ""
            if meaning[index - 1].kind == "name" and following in (";", ",", "=", "["):
                raise UnsupportedMetal(
                    f"line {token.line}: the member {token.text} reads as a swizzle; give it another name"
                )


def _opens_struct(meaning: list[Token], index: int) -> bool:
    while index and meaning[index - 1].text not in (";", "{", "}", ")"):
        index -= 1
        if meaning[index].text in ("struct", "class", "union"):
            return True
    return False
