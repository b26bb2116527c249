"""From Metal source to a shared object: headers rewritten beside each other, one translation unit, the toolchain."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2ml_kernels.compilers import find_compiler
from m2ml_kernels.errors import CompileError
from m2ml_kernels.metal_host.errors import SanitizerMissing
from m2ml_kernels.metal_host.rewrite import rewrite
from m2ml_kernels.metal_host.signature import ATTRIBUTES, Signature, find_kernel
from m2ml_kernels.toolchain import Built, compile_program, compile_shared, object_folder

HERE = Path(__file__).parent
SHIM = HERE / "shim"
Sanitizer = Literal["", "address", "thread"]
Constant = bool | int | float
# Written for Apple's compiler, which has these functions built in; the shim has them for bfloat already.
_SHADOWED = {"bf16_math.h"}


@dataclass(frozen=True)
class Variant:
    """How a kernel is compiled: with a sanitizer, with fast math's allowed error (a seed), with contracted products, or
    so that a launch counts what it does."""

    sanitizer: Sanitizer = ""
    noise: int | None = None
    contract: bool = False
    safe_math: bool = False
    counted: bool = False

    def flags(self) -> list[str]:
        out = [f"-ffp-contract={'fast' if self.contract else 'off'}"]
        if self.contract and os.uname().machine == "x86_64":
            out.append("-mfma")
        if self.noise is not None:
            out.append(f"-DM2_NOISE={self.noise}u")
        if self.safe_math:
            out.append("-DM2_SAFE_MATH")
        if self.counted:  # the calls that a sanitizer and coverage need, without their libraries: shim/m2/counted.h
            out += ["-DM2_COUNTED", "-fsanitize=thread", "-fsanitize-coverage=trace-pc"]
            out += ["-fno-exceptions", *_plain_libraries()]
        if self.sanitizer == "address":
            out += ["-fsanitize=address", "-fno-omit-frame-pointer"]
        if self.sanitizer == "thread":
            out += ["-fsanitize=thread"]
        return out


PLAIN = Variant()


@dataclass(frozen=True)
class Kernel:
    """A kernel that is compiled: its parameters, its object, and the seconds compiling took."""

    signature: Signature
    built: Built
    variant: Variant
    file: str

    def held(self) -> dict[int, tuple[str, int]]:
        """The kind of the numbers in each buffer, as ``shim/m2/entry.h`` has it, and their bytes."""
        told = _contents(self.built.path, len(self.signature.parameters))
        return {
            parameter.index: (chr(kind), size)
            for parameter, kind, size in zip(self.signature.parameters, told[::2], told[1::2], strict=True)
            if parameter.source == "buffer" and chr(kind) != "-"
        }


@functools.lru_cache(maxsize=1024)
def _contents(path: Path, parameters: int) -> bytes:
    compiled = path.read_bytes()
    start = compiled.index(_CONTENTS) + len(_CONTENTS)
    return compiled[start : start + 2 * parameters]


_CONTENTS = b"m2:contents="


@dataclass(frozen=True)
class Source:
    """Metal source text: ``file`` names it in messages; ``include`` are the folders of its headers; ``prelude`` is put
    before it and takes no line."""

    text: str
    file: str = "kernel.metal"
    include: tuple[Path, ...] = ()
    prelude: str = ""

    @classmethod
    def read(cls, path: Path, include: Sequence[Path] = ()) -> Source:
        return cls(path.read_text(), str(path), (path.parent, *include))


def compile_kernel(
    source: Source,
    kernel: str,
    *,
    template: str = "",
    constants: Mapping[int, Constant] | None = None,
    variant: Variant = PLAIN,
) -> Kernel:
    """Compile the kernel function ``kernel`` of ``source``; ``template`` is its template arguments, as ``float, 4``.

    ``constants`` gives function constants their values, by index. Raises `InvalidMetal`, `UnsupportedMetal`, and
    `CompileError` with the line of the Metal source.
    """
    headers = _Headers(source.include).find
    body, prelude = rewrite(source.text, find_header=headers), rewrite(source.prelude, find_header=headers)
    signature = find_kernel(source.text, kernel, source.file)
    if variant.sanitizer:
        runtime_program(variant.sanitizer)  # says so where there is none
    unit = _translation_unit(source.file, prelude, body, signature, template, constants or {})
    try:
        built = compile_shared(unit, flags=[*_flags(), *variant.flags()], include=[SHIM], name=f"metal_{kernel}")
    except CompileError as error:
        raise CompileError(_in_metal(str(error), kernel), error.log) from None
    return Kernel(signature, built, variant, source.file)


_QUOTE = "['\u2018\u2019]"  # clang's and g++'s


def _in_metal(message: str, kernel: str) -> str:
    """What a C++ compiler says of a kernel, without the host's own names."""
    said = message.replace(f"metal_{kernel} does not compile", f"{kernel} is not valid Metal")
    name = next((name for name in ATTRIBUTES if re.search(rf"{_QUOTE}{name}{_QUOTE}", said)), "")
    if name and (place := re.search(r": (\S+:\d+: )", said)):
        parameter = f"{ATTRIBUTES[name]} {name} [[{name}]]"
        return f"{said[: place.end()]}{name} is not declared; give {kernel} the parameter {parameter}"
    return re.sub(rf"; did you mean {_QUOTE}m2::\S+?{_QUOTE}\?", "", said)


def _translation_unit(
    file: str, prelude: str, body: str, signature: Signature, template: str, constants: Mapping[int, Constant]
) -> str:
    """C++ of the rewritten kernel and of the entry that the runtime calls."""
    chosen = f"{signature.name}<{template}>" if template else signature.name
    slots = (
        ", ".join(f"{{m2::source::{p.source}, {p.index}}}" for p in signature.parameters) or "{m2::source::buffer, 0}"
    )
    return f"""#include <metal_stdlib>
extern "C" {{ const m2::host* m2_host; }}
{_function_constants(constants)}
{prelude}
#line 1 "{file}"
{body}
#line 1 "the entry of {signature.name}"
extern "C" {{ extern const auto m2_contents = m2::contents_of(&{chosen}); }}
extern "C" void m2_entry(void* const* buffers, void* const* memory, const m2::thread_info* self) {{
  static constexpr m2::slot slots[] = {{{slots}}};
  m2::call(&{chosen}, slots, buffers, memory, *self);
}}
"""


def type_check_unit(source: Source) -> str:
    """C++ of everything in ``source``, every explicit instantiation included; for the compiler's eyes only."""
    body = rewrite(source.text, find_header=_Headers(source.include, instantiate=True).find, instantiate=True)
    return f'#include <metal_stdlib>\n{_function_constants({})}\n#line 1 "{source.file}"\n{body}\n'


def runtime_library() -> Path:
    """The runtime as a shared object, compiled when it is first needed."""
    return compile_shared(HERE / "runtime" / "launch.cc", flags=_THREADS, name="metal_runtime").path


def runtime_program(sanitizer: Sanitizer) -> Path:
    """The runtime as a program, for launches with a time limit and for sanitizers."""
    flags, link_flags = ["-DM2_PROGRAM", "-O1", *_THREADS], ["-rdynamic"]  # built before it is used, for few launches
    if sanitizer:  # linked in, so that kernels find it; the runtime itself is not watched
        flags.append("-DM2_ASAN" if sanitizer == "address" else "-DM2_TSAN")
        link_flags.append(f"-fsanitize={sanitizer}")
    source = HERE / "runtime" / "launch.cc"
    try:
        return compile_program(
            source, flags=flags, link_flags=link_flags, name=f"metal_runtime_{sanitizer or 'plain'}"
        ).path
    except CompileError as error:
        if not sanitizer:
            raise
        raise SanitizerMissing(
            f"the {sanitizer} sanitizer is not part of {find_compiler()} (install its runtime, or use g++): {error}"
        ) from error


_THREADS = ("-pthread", *(("-ldl",) if sys.platform == "linux" else ()))


def _plain_libraries() -> list[str]:
    """In place of what a compiler links for a sanitizer; clang links nothing to a shared object but on a Mac."""
    if sys.platform == "darwin":
        return ["-nodefaultlibs", "-lSystem"]
    if find_compiler().kind != "gcc":
        return []
    return ["-nodefaultlibs", "-Wl,--no-as-needed", "-lm", "-lc", "-lgcc_s", "-Wl,--as-needed"]


@functools.cache
def _flags_of(kind: str, version: str) -> tuple[str, ...]:
    flags = [
        "-O1",
        "-g1",
        "-gdwarf-4",  # binutils 2.40 takes the wrong file from version 5
        "-w",
        "-Wno-narrowing",
        "-fno-strict-aliasing",
        "-fwrapv",
        "-fno-math-errno",
        "-fno-trapping-math",
    ]
    if kind != "zig":
        flags.append("-fsanitize=integer-divide-by-zero,bounds")
        if sys.platform == "linux":
            flags.append("-Wl,--as-needed")  # the checks call the shim; the library of the compiler is not wanted
    if kind == "gcc":
        major = re.search(r"\) (\d+)\.", version)
        if major and int(major[1]) >= 13:
            flags.append("-fexcess-precision=16")
    elif os.uname().machine == "x86_64":
        flags += ["-Xclang", "-ffloat16-excess-precision=none"]
    return tuple(flags)


def _flags() -> tuple[str, ...]:
    compiler = find_compiler()
    return _flags_of(compiler.kind, compiler.version)


def _function_constants(constants: Mapping[int, Constant]) -> str:
    chosen = "".join(
        f"if constexpr (n == {index}) return {_literal(value)}; else " for index, value in constants.items()
    )
    return f"template <int n> constexpr auto m2_function_constant() {{ {chosen}return 0; }}"


def _literal(value: Constant) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value!r}f" if isinstance(value, float) else str(value)


class _Headers:
    """Rewritten copies of the headers a source includes, each under a folder named after where it comes from."""

    def __init__(self, include: Sequence[Path], instantiate: bool = False) -> None:
        self.include = include
        self.instantiate = instantiate
        self.done: dict[Path, str] = {}

    def find(self, name: str, beside: Path | None = None) -> str | None:
        for folder in (*([beside] if beside else []), *self.include):
            path = folder / name
            if path.is_file():
                return self.copy(path.resolve())
        return None

    def copy(self, path: Path) -> str:
        if path not in self.done:
            place = hashlib.sha256(f"{path.parent}{self.instantiate}".encode()).hexdigest()[:16]
            target = object_folder().parent / "metal_headers" / place / path.name
            self.done[path] = str(target)
            text = "#pragma once\n" if path.name in _SHADOWED else self.rewritten(path)
            _write_if_changed(target, text)
        return self.done[path]

    def rewritten(self, path: Path) -> str:
        body = rewrite(
            path.read_text(),
            find_header=functools.partial(self.find, beside=path.parent),
            instantiate=self.instantiate,
            own=False,
        )
        return f'#line 1 "{path}"\n{body}'


def _write_if_changed(target: Path, text: str) -> None:
    if target.is_file() and target.read_text() == text:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(target)
