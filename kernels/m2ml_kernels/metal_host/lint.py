"""Mistakes with address spaces, of which a CPU has one only: told by libclang, without a compiler."""

from __future__ import annotations

import itertools
import re
from typing import Any

from m2ml_kernels.errors import KernelError
from m2ml_kernels.metal_host.build import SHIM, Source
from m2ml_kernels.metal_host.findings import Finding
from m2ml_kernels.metal_host.lexer import Token, loud, text_of, tokenize
from m2ml_kernels.metal_host.rewrite import STATEMENT_ENDS, is_pointer

KIND = "address space"
_SPACES = {"device", "constant", "threadgroup", "thread"}
# Of what libclang says, only this is told: its declarations are not the whole of Metal, the host's are.
_TOLD = re.compile(
    r"changes address space|cannot initialize a .*'.*\b(?:device|constant|threadgroup)\b"
    r"|read-only variable|not assignable|cannot assign to variable|cannot bind to (?:vector element|a value)"
)
# Of calls that fit no function, and of lists that fit no members: what libclang notes, and what that means.
_NOTED = {
    "cannot pass pointer to address space": "a pointer to another address space is passed",
    "cannot convert initializer list argument": "a value of the list does not fit its member",
}


class LinterMissing(KernelError, ImportError):
    """The package libclang is not installed."""


def lint(source: Source) -> list[Finding]:
    """Pointers without an address space, mixed-up ones, writes to constant memory, references to vector elements.

    Raises `LinterMissing` without the package libclang.
    """
    try:
        from clang import cindex
    except ImportError as error:
        raise LinterMissing("the lint needs the package libclang; install it (pip install libclang)") from error
    tokens = tokenize(source.text)
    found = _unqualified(loud(tokens), source.file)
    unit = cindex.Index.create().parse(
        "kernel.cc",
        args=[
            "-std=c++17",
            "-x",
            "c++",
            "-w",
            f"-I{SHIM}",
            "-ferror-limit=0",
            "-nostdinc",
            "-nostdinc++",
            "-include",
            "m2/lint.h",
        ],
        unsaved_files=[("kernel.cc", _prepared(tokens))],
    )
    found += [_finding(diagnostic, source.file) for diagnostic in unit.diagnostics if _is_told(diagnostic)]
    # Sorting is stable: of one line, what is found here comes before what libclang says, in its order.
    return sorted(dict.fromkeys(found), key=lambda finding: finding.line)


def _prepared(tokens: list[Token]) -> str:
    """The source as libclang is to read it: every line in its place, threadgroup variables static, templates
    instantiated where the source instantiates them."""
    _drop_attributes(tokens)
    meaning = loud(tokens)
    for index, token in enumerate(meaning):
        before = meaning[index - 1].text if index else ""
        if token.text == "threadgroup" and before in STATEMENT_ENDS and not is_pointer(_statement(meaning, index + 1)):
            token.text = "static threadgroup"
    for token in tokens:
        if token.kind == "directive" and re.match(r"\s*#\s*(?:include|import)", token.text):
            token.erase()
    return text_of(tokens)


def _drop_attributes(tokens: list[Token]) -> None:
    """Erase the attributes in ``template [[host_name(...)]] [[kernel]] ... ;``, which leaves what C++ instantiates."""
    depth, erasing = 0, False
    for before, token in itertools.pairwise(loud(tokens)):
        erasing = (erasing or before.text == "template") and (depth > 0 or token.text == "[")
        if erasing:
            depth += (token.text == "[") - (token.text == "]")
            token.erase()


def _statement(meaning: list[Token], start: int) -> list[Token]:
    end = start
    while end < len(meaning) and meaning[end].text not in (";", "{"):
        end += 1
    return meaning[start:end]


def _is_told(diagnostic: Any) -> bool:
    return diagnostic.severity >= 3 and bool(_TOLD.search(diagnostic.spelling) or _noted(diagnostic))


def _noted(diagnostic: Any) -> str:
    spelled = " ".join(note.spelling for note in diagnostic.children)
    return next((f": {meaning}" for note, meaning in _NOTED.items() if note in spelled), "")


def _finding(diagnostic: Any, file: str) -> Finding:
    said = diagnostic.spelling.replace("const __attribute__((address_space(2)))", "constant")
    return Finding(KIND, file, diagnostic.location.line, said + _noted(diagnostic))


def _unqualified(tokens: list[Token], file: str) -> list[Finding]:
    """Parameters and variables that are pointers or references to no address space."""
    out = []
    for index, token in enumerate(tokens[:-1]):
        follows = tokens[index + 1]
        if token.text not in ("*", "&") or follows.kind != "name" or not index:
            continue
        start = index - 1
        while start >= 0 and tokens[start].text not in (";", "{", "}", "(", ",", ")", "="):
            start -= 1
        words = [part.text for part in tokens[start + 1 : index]]
        if _declares(words, tokens, index + 2) and not _SPACES & set(words):
            declared = f"{' '.join(words)}{token.text} {follows.text}"
            what = f"{declared} needs an address space: device, constant, threadgroup or thread"
            out.append(Finding(KIND, file, token.line, what))
    return out


_SCALARS = "float half bfloat bfloat16_t float16_t int uint short ushort char uchar long ulong bool size_t void"
_TYPES = re.compile(rf"(?:{'|'.join(_SCALARS.split())}|u?int\d+_t)[234]?|T|U")
_QUALIFIERS = {"const", "volatile", "static", "constexpr", "restrict", "unsigned", "signed"}


def _declares(words: list[str], tokens: list[Token], after: int) -> bool:
    """Whether ``words`` before ``* name`` or ``& name`` are a type: known words and nothing that computes."""
    following = tokens[after].text if after < len(tokens) else ""
    plain = [word for word in words if word not in _QUALIFIERS]
    return len(plain) == 1 and bool(_TYPES.fullmatch(plain[0])) and following in (",", ")", ";", "=", "[")
