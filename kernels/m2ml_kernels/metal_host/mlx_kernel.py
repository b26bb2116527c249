"""`mlx.core.fast.metal_kernel` on a CPU: the same call, the same generated source, run by the host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from m2ml_kernels.metal_host.build import PLAIN, Kernel, Source, Variant, compile_kernel
from m2ml_kernels.metal_host.check import Case
from m2ml_kernels.metal_host.codegen import (
    Argument,
    Definition,
    TemplateValue,
    generate,
    kernel_name,
    template_arguments,
)
from m2ml_kernels.metal_host.errors import InvalidLaunch, KernelFault
from m2ml_kernels.metal_host.execution import IN_ORDER, Output, Result, Schedule, launch
from m2ml_kernels.toolchain import object_folder

# MLX's dtypes by name: what Metal calls them, and the NumPy dtype that holds their bytes.
_TYPES = {
    "bool": ("bool", np.bool_),
    "uint8": ("uint8_t", np.uint8),
    "uint16": ("uint16_t", np.uint16),
    "uint32": ("uint32_t", np.uint32),
    "uint64": ("uint64_t", np.uint64),
    "int8": ("int8_t", np.int8),
    "int16": ("int16_t", np.int16),
    "int32": ("int32_t", np.int32),
    "int64": ("int64_t", np.int64),
    "float16": ("float16_t", np.float16),
    "bfloat16": ("bfloat16_t", np.uint16),
    "float32": ("float", np.float32),
    "complex64": ("complex64_t", np.complex64),
}
_MODES = ("safe", "relaxed", "fast")
_PRELUDE = '#include "mlx/backend/metal/kernels/utils.h"\n'


#: Given each launch, so that it can be made again, and its result.
Watch = Callable[[Case, Result], None]


@dataclass(frozen=True)
class Settings:
    """How the kernels under `emulate` run: in which order, compiled how, within how many seconds, and told to whom."""

    schedule: Schedule = IN_ORDER
    variant: Variant = PLAIN
    seconds: float | None = None
    watch: Watch | None = None


_current: list[Settings] = []


@contextlib.contextmanager
def emulate(
    *,
    schedule: Schedule = IN_ORDER,
    variant: Variant = PLAIN,
    seconds: float | None = None,
    watch: Watch | None = None,
) -> Iterator[None]:
    """Within it, `mlx.core.fast.metal_kernel` makes kernels that run on the CPU, through the host.

    They run when they are called, so they cannot be used inside mx.compile or mx.vmap. A kernel that does what Metal
    leaves undefined raises `KernelFault`. ``watch`` is given each launch and its result, before that.
    """
    import mlx.core as mx

    fast: Any = mx.fast
    original = fast.metal_kernel
    _current.append(Settings(schedule, variant, seconds, watch))
    fast.metal_kernel = metal_kernel
    try:
        yield
    finally:
        fast.metal_kernel = original
        _current.pop()


def emulating() -> bool:
    """Whether `emulate` is in force, so that what runs is to be called ``metal (host)``."""
    return bool(_current)


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
) -> Callable[..., list[Any]]:
    """As `mlx.core.fast.metal_kernel`; see there. What it returns is called as MLX's kernels are."""
    if not output_names:
        raise ValueError("[metal_kernel] Must specify at least one output.")
    mode = _math_mode(compile_options or {})
    definition = Definition(name, tuple(input_names), tuple(output_names), source, header, atomic_outputs)
    return _HostKernel(definition, ensure_row_contiguous, mode)


def _math_mode(options: Mapping[str, str]) -> str:
    for key in options:
        if key != "math_mode":
            raise ValueError(f"[metal_kernel] Unknown compile option `{key}`.")
    mode = options.get("math_mode", "safe")
    if mode not in _MODES:
        raise ValueError("[metal_kernel] Expected math_mode to be 'safe', 'relaxed', or 'fast'.")
    return mode


@dataclass(frozen=True)
class _HostKernel:
    definition: Definition
    ensure_row_contiguous: bool
    math_mode: str

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[Any],
        grid: Sequence[int],
        threadgroup: Sequence[int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[Any]:
        self._check_sizes(inputs, output_shapes, output_dtypes)
        arrays = [_to_numpy(value, self.ensure_row_contiguous) for value in inputs]
        arguments = [Argument(type_name, array.ndim, array.size) for type_name, array in arrays]
        types = [_TYPES[_name_of(dtype)] for dtype in output_dtypes]
        chosen = [(key, _template_value(value)) for key, value in template or ()]
        names = [type_name for type_name, _ in types]
        text = generate(self.definition, arguments, names, chosen)
        if verbose:
            print(f"Generated source code for `{self.definition.name}`:\n```\n{text}\n```")
        buffers = self._buffers([array for _, array in arrays], arguments)
        outputs = range(len(buffers), len(buffers) + len(types))
        for index, shape, (_, dtype), mlx_dtype in zip(outputs, output_shapes, types, output_dtypes, strict=True):
            buffers[index] = _output(tuple(shape), np.dtype(dtype), init_value, _name_of(mlx_dtype))
        function = kernel_name(self.definition, arguments, names, chosen)
        left = self._run(text, function, template_arguments(chosen), buffers, outputs, grid, threadgroup)
        return [_to_mlx(left[index], dtype) for index, dtype in zip(outputs, output_dtypes, strict=True)]

    def _run(
        self,
        text: str,
        function: str,
        template: str,
        buffers: dict[int, np.ndarray | Output],
        outputs: Sequence[int],
        grid: Sequence[int],
        threadgroup: Sequence[int],
    ) -> dict[int, np.ndarray]:
        settings = _current[-1] if _current else Settings()
        variant = Variant(**{**vars(settings.variant), "safe_math": self.math_mode == "safe"})
        file = f"{self.definition.name}.metal"
        source = Source(text, file, (metal_headers(),), prelude=_PRELUDE)
        compiled = _compiled(source, function, template, variant, object_folder())
        result = launch(
            compiled,
            buffers,
            grid=grid,
            threadgroup=threadgroup,
            read_back=list(outputs),
            schedule=settings.schedule,
            seconds=settings.seconds,
        )
        if settings.watch:
            case = Case(source, function, buffers, tuple(grid), tuple(threadgroup), template)
            settings.watch(replace(case, read_back=tuple(outputs), safe_math=variant.safe_math), result)
        if result.errors:
            raise KernelFault(f"{self.definition.name}: {result.errors[0]}")
        return result.buffers

    def _check_sizes(self, inputs: Sequence[Any], shapes: Sequence[Any], dtypes: Sequence[Any]) -> None:
        expected = len(self.definition.output_names)
        for what, given, count in (
            ("inputs", inputs, len(self.definition.input_names)),
            ("output_shapes", shapes, expected),
            ("output_dtypes", dtypes, expected),
        ):
            if len(given) != count:
                raise ValueError(f"[metal_kernel] Expected `{what}` to have size {count} but got size {len(given)}.")

    def _buffers(self, arrays: Sequence[np.ndarray], arguments: Sequence[Argument]) -> dict[int, np.ndarray | Output]:
        out: dict[int, np.ndarray | Output] = {}
        for index, (array, argument) in enumerate(zip(arrays, arguments, strict=True)):
            out[len(out)] = _memory_of(array)
            for extra in self.definition.extras(index, argument):
                out[len(out)] = _extra(extra, array)
        return out


@functools.lru_cache(maxsize=1024)
def _compiled(source: Source, function: str, template: str, variant: Variant, cache: Path) -> Kernel:
    """Once in a process: MLX's headers, which the source includes, do not change while it runs."""
    return compile_kernel(source, function, template=template, variant=variant)


def metal_headers() -> Path:
    """The folder of the Metal headers that MLX's wheel ships. Raises `InvalidLaunch` when MLX is not installed."""
    try:
        import mlx.core
    except ImportError as error:
        raise InvalidLaunch(f"MLX's Metal headers are needed, and MLX does not import: {error}") from error
    return Path(mlx.core.__file__).parent / "include"


def _to_numpy(value: Any, contiguous: bool) -> tuple[str, np.ndarray]:
    """An input's Metal type, and its elements with the strides MLX has them in."""
    import mlx.core as mx

    array = value if isinstance(value, mx.array) else mx.array(value)
    type_name, dtype = _TYPES[_name_of(array.dtype)]
    try:
        mx.eval(array)
        plain = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False)
    except (RuntimeError, ValueError) as error:
        raise InvalidLaunch(
            f"the host runs a kernel when it is called, which mx.compile and mx.vmap do not allow: {error}"
        ) from error
    if contiguous or any(stride < 0 for stride in plain.strides):
        plain = np.ascontiguousarray(plain).reshape(plain.shape)
    return type_name, plain.view(dtype) if plain.dtype != dtype else plain


def _memory_of(array: np.ndarray) -> np.ndarray:
    """The elements of an array's memory in a row, from its first one to the last that its strides reach."""
    if array.flags.c_contiguous:
        return array
    span = 1 + sum(
        (size - 1) * stride // array.itemsize for size, stride in zip(array.shape, array.strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(array, (span,), (array.itemsize,)) if array.size else array


def _extra(extra: str, array: np.ndarray) -> np.ndarray:
    if extra == "shape":
        return np.array(array.shape, np.int32)
    if extra == "strides":
        return np.array([stride // array.itemsize for stride in array.strides], np.int64)
    return np.array([array.ndim], np.int32)


def _output(shape: tuple[int, ...], dtype: np.dtype, init_value: float | None, name: str) -> np.ndarray | Output:
    if init_value is None:
        return Output(shape, dtype)
    if name == "bfloat16":
        return np.full(shape, np.float32(init_value).view(np.uint32) >> 16, dtype)
    return np.full(shape, init_value, dtype)


def _to_mlx(array: np.ndarray, dtype: Any) -> Any:
    import mlx.core as mx

    made = mx.array(array)
    return made.view(mx.bfloat16) if dtype == mx.bfloat16 else made


def _name_of(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def _template_value(value: Any) -> TemplateValue:
    if isinstance(value, bool | int):
        return value
    return _TYPES[_name_of(value)][0]
