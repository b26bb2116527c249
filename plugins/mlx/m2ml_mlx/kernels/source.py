"""Kernels from source: the bodies in ``m2ml_kernels/metal`` and ``cuda``, made by MLX when they are first called."""

from __future__ import annotations

import functools
import importlib.resources
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A launch costs more than the one or two operations of MLX that it saves while there is little to do: at one row
#: add_rms_norm ran at 0.73 of their speed, at 4096 rows at 1.2 (M3, mlx#4259); where they meet is not known yet.
FEWEST_ROWS = 8

#: Bodies count elements in 32 bits.
MOST_ELEMENTS = 2**31

#: Threads of a threadgroup at most, and in a group that goes in step.
THREADS, WIDTH = 1024, 32


def on_host() -> bool:
    """Whether Metal kernels run on the CPU: within `m2ml_kernels.metal_host.emulate`."""
    host = sys.modules.get("m2ml_kernels.metal_host")
    return host is not None and host.emulating()


def has_metal() -> bool:
    import mlx.core as mx

    return bool(mx.metal.is_available()) or on_host()


def has_cuda() -> bool:
    import mlx.core as mx

    return bool(mx.cuda.is_available())


@dataclass(frozen=True)
class Source:
    """A kernel's body in a file, ``metal/<file>.metal`` or ``cuda/<file>.cu``, and the names it has for its arrays."""

    language: str
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    header_files: tuple[str, ...] = ("functions.h",)

    @property
    def path(self) -> str:
        return f"{self.language}/{self.file}.{'cu' if self.language == 'cuda' else 'metal'}"

    @property
    def location(self) -> Path:
        """Where the body lies; the headers lie beside it."""
        return Path(str(importlib.resources.files("m2ml_kernels") / self.path))

    @property
    def body(self) -> str:
        return text(self.path)

    @property
    def header(self) -> str:
        return "\n".join(text(f"{self.language}/{name}") for name in self.header_files)

    def __call__(
        self, *arrays: Any, out: Sequence[tuple[Sequence[int], Any]], threads: Sequence[int], **more: Any
    ) -> Any:
        """Launch it: ``out`` are shapes and dtypes, ``threads`` those of the grid and of a threadgroup in x and y.

        What else is named is a template argument: a dtype, a bool or an int.
        """
        import mlx.core as mx

        maker = mx.fast.cuda_kernel if self.language == "cuda" else mx.fast.metal_kernel
        x, y, group = threads
        return _made(maker, f"m2ml_{self.file}", self.inputs, self.outputs, self.body, self.header)(
            inputs=list(arrays),
            output_shapes=[tuple(shape) for shape, _ in out],
            output_dtypes=[dtype for _, dtype in out],
            grid=(x, y, 1),
            threadgroup=(group, 1, 1),
            template=list(more.items()),
        )


@functools.lru_cache(maxsize=256)
def _made(
    maker: Callable[..., Any], name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], body: str, header: str
) -> Any:
    """The kernel by MLX's own function, or by the host that stands in for it."""
    return maker(name=name, input_names=list(inputs), output_names=list(outputs), source=body, header=header)


@functools.cache
def text(path: str) -> str:
    """A file of `m2ml_kernels`."""
    return (importlib.resources.files("m2ml_kernels") / path).read_text()


def each(count: int, per_thread: int = 1) -> tuple[int, int, int]:
    """Threads for ``count`` elements, so many in each."""
    return math.ceil(count / per_thread), 1, 256


def each_row(rows: int, n: int) -> tuple[int, int, int]:
    """A threadgroup for each row of ``n``, of whole simdgroups, whose threads take about four elements."""
    group = min(THREADS, WIDTH * math.ceil(max(n, 1) / (4 * WIDTH)))
    return rows * group, 1, group


def worthwhile(x: Any) -> str:
    """Why a kernel does not take an array of rows: it is empty, too large, or has too few."""
    if not x.size:
        return "there are no elements"
    if x.size >= MOST_ELEMENTS:
        return f"{x.size:,} elements are more than it counts"
    rows = math.prod(x.shape[:-1])
    if rows < FEWEST_ROWS and not on_host():
        return f"for fewer than {FEWEST_ROWS} rows, here {rows}, a launch costs more than it saves"
    return ""
