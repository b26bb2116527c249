"""C++ kernels inside XLA programs: compiled on first use, registered with XLA's foreign function interface."""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")


def source_of(stem: str) -> Path:
    """The file ``cpp/<stem>.cc`` of the kernels that come with m2ml."""
    return Path(str(importlib.resources.files("m2ml_kernels") / "cpp" / f"{stem}.cc"))


def settings() -> dict[str, Any]:
    """How files of kernels are compiled."""
    return {"flags": FLAGS, "include": (jax.ffi.include_dir(), source_of("call").parent)}


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The compiled kernels of one file. Raises what `m2ml_kernels.compile_shared` raises."""
    from m2ml_kernels import compile_shared

    return ctypes.CDLL(str(compile_shared(source, name=source.name, **settings()).path))


@functools.cache
def target(source: Path, symbol: str) -> str:
    """The name by which XLA knows the handler ``symbol`` of a file."""
    name = f"m2ml_{source.stem}_{symbol}"
    handler = jax.ffi.pycapsule(getattr(library(source), symbol))
    jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return name


def handler(source: Path, symbol: str = "") -> Callable[..., Any]:
    """``call(out_types, *arrays, **attributes)``: a handler of a C++ file as a function that JAX traces.

    ``out_types`` is a `jax.ShapeDtypeStruct` or a sequence of them; attributes are NumPy scalars (float32, int64).
    ``aliases`` maps arguments to the results that may take their place, by number.
    """
    name = target(source, symbol or source.stem)

    def call(out_types: Any | Sequence[Any], *arrays: Any, aliases: Any = None, **attributes: Any) -> Any:
        return jax.ffi.ffi_call(name, out_types, input_output_aliases=aliases)(*arrays, **attributes)

    return call
