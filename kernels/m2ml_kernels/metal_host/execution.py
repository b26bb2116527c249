"""Run a compiled kernel: in this process, or in one of its own with a time limit or under a sanitizer."""

from __future__ import annotations

import ctypes
import functools
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from m2ml_kernels.metal_host.build import Kernel, runtime_library, runtime_program
from m2ml_kernels.metal_host.counts import Counts, read_counts
from m2ml_kernels.metal_host.errors import InvalidLaunch, KernelFault, KernelTimeout
from m2ml_kernels.metal_host.findings import Finding
from m2ml_kernels.metal_host.places import place_of
from m2ml_kernels.metal_host.sanitizers import environment, prefix, read_report

Order = Literal["forward", "reverse", "random"]
_ORDERS: tuple[Order, ...] = ("forward", "reverse", "random")
MAX_THREADS = 1024
_HEAD = struct.Struct("<QQQ")  # of a result: whether it failed, the bytes of its findings, and of its counts


@dataclass(frozen=True)
class Schedule:
    """In which order threads, simdgroups and threadgroups take their turns, and what they find in fresh memory.

    ``fill`` is the byte that uninitialized outputs and threadgroup memory hold: 0xff reads as NaN, or as -1.
    """

    order: Order = "forward"
    seed: int = 0
    fill: int = 0xFF
    flush_denormals: bool = False
    shuffle_reductions: bool = False
    workers: int = 1


IN_ORDER = Schedule()


@dataclass(frozen=True)
class Output:
    """A buffer the kernel writes, not given: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Result:
    """What a launch left in every buffer that was given as `Output` or in ``read_back``, and what it showed.

    ``counts`` are there when the kernel was compiled to be counted.
    """

    buffers: dict[int, np.ndarray]
    findings: tuple[Finding, ...]
    counts: Counts | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.is_note)


def launch(
    kernel: Kernel,
    buffers: Mapping[int, np.ndarray | Output],
    *,
    grid: Sequence[int],
    threadgroup: Sequence[int],
    memory: Mapping[int, int] | None = None,
    read_back: Sequence[int] = (),
    schedule: Schedule = Schedule(),
    seconds: float | None = None,
) -> Result:
    """Run ``kernel`` on ``grid`` threads in threadgroups of ``threadgroup``, as Metal's dispatchThreads does.

    ``buffers`` are the kernel's buffers by index; ``memory`` the bytes of its threadgroup arguments by index;
    ``seconds`` a time limit, which runs it in a process of its own, as every sanitizer does.
    Raises `InvalidLaunch` for arguments that do not fit the kernel, `KernelFault` when it reached outside its memory,
    and `KernelTimeout`.
    """
    job, wanted = _encode(kernel, buffers, grid, threadgroup, memory or {}, read_back, schedule)
    if seconds is None and not kernel.variant.sanitizer:
        return _decode(kernel, _run_here(kernel, job), wanted, [])
    raw, reports = _run_apart(kernel, job, seconds)
    return _decode(kernel, raw, wanted, reports)


def _encode(
    kernel: Kernel,
    buffers: Mapping[int, np.ndarray | Output],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    memory: Mapping[int, int],
    read_back: Sequence[int],
    schedule: Schedule,
) -> tuple[bytes, dict[int, Output]]:
    names = _check(kernel, buffers, grid, threadgroup, memory)
    count = max([*names, *buffers], default=-1) + 1
    memory_count = max(memory, default=-1) + 1
    words = [*grid, *threadgroup, schedule.workers, _ORDERS.index(schedule.order), schedule.seed, schedule.fill]
    words += [schedule.flush_denormals, schedule.shuffle_reductions, kernel.variant.counted, count, memory_count]
    parts = [struct.pack(f"<{len(words)}Q", *words)]
    wanted = {}
    for index in range(count):
        given = buffers.get(index, Output((16,), np.dtype(np.uint8)))
        is_output = isinstance(given, Output) or index in read_back
        if index in buffers and is_output:
            wanted[index] = given if isinstance(given, Output) else Output(given.shape, given.dtype)
        name = names.get(index, str(index)).encode()
        size = int(np.prod(given.shape, dtype=np.int64)) * given.dtype.itemsize
        parts += [struct.pack("<Q", len(name)), _padded(name)]
        parts.append(struct.pack("<QQQ", index in wanted, not isinstance(given, Output), size))
        if isinstance(given, np.ndarray):
            parts.append(_padded(np.ascontiguousarray(given).tobytes()))
    parts.append(struct.pack(f"<{memory_count}Q", *(memory.get(index, 16) for index in range(memory_count))))
    return b"".join(parts), wanted


def _check(
    kernel: Kernel,
    buffers: Mapping[int, np.ndarray | Output],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    memory: Mapping[int, int],
) -> dict[int, str]:
    name, names = kernel.signature.name, kernel.signature.buffer_names()
    for what, sizes in (("grid", grid), ("threadgroup", threadgroup)):
        if len(sizes) != 3 or any(size < 1 for size in sizes):
            raise InvalidLaunch(f"{name}: {what} is three positive sizes, x, y and z; got {tuple(sizes)}")
    threads = int(np.prod([min(*pair) for pair in zip(grid, threadgroup, strict=True)]))
    if threads > MAX_THREADS:
        raise InvalidLaunch(
            f"{name}: a threadgroup of {tuple(threadgroup)} has {threads} threads; Metal has at most 1024"
        )
    if unknown := sorted(set(buffers) - set(names)):
        raise InvalidLaunch(f"{name} has no buffer {unknown[0]}; its buffers are {_listed(names)}")
    if missing := sorted(set(kernel.signature.required()) - set(buffers)):
        raise InvalidLaunch(
            f"{name}: buffer {missing[0]} ('{names[missing[0]]}') is not given; its buffers are {_listed(names)}"
        )
    if missing := sorted(set(kernel.signature.indices("threadgroup")) - set(memory)):
        raise InvalidLaunch(f"{name}: the size of threadgroup memory {missing[0]} is not given")
    for index, held in kernel.held().items():
        if index in buffers and not _fits(buffers[index].dtype, *held):
            wanted, given = _NAMES.get(held, f"int{8 * held[1]} or uint{8 * held[1]}"), buffers[index].dtype.name
            raise InvalidLaunch(f"{name}: buffer {index} ('{names[index]}') is of {wanted}; got {given}")
    return names


_NAMES = {("f", 4): "float32", ("f", 2): "float16", ("b", 2): "bfloat16 (or uint16, its bits)", ("?", 1): "bool"}


def _fits(dtype: np.dtype, kind: str, size: int) -> bool:
    """Whether an array of ``dtype`` can be what a kernel takes for numbers of that kind; bytes can be anything."""
    if dtype.itemsize == 1 or size == 1:
        return True
    if dtype.itemsize != size:
        return False
    if kind == "b":
        return dtype.kind == "u" or dtype.name == "bfloat16"
    return dtype.kind in {"f": "f", "i": "iu"}[kind]


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{index} '{name}'" for index, name in sorted(names.items()))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _run_here(kernel: Kernel, job: bytes) -> bytes:
    runtime = _runtime(str(runtime_library()))
    size = ctypes.c_size_t()
    result = runtime.m2_run(_handle(str(kernel.built.path)), job, len(job), ctypes.byref(size))
    try:
        return ctypes.string_at(result, size.value)
    finally:
        runtime.m2_free(result)


@functools.cache
def _runtime(path: str) -> ctypes.CDLL:
    runtime = ctypes.CDLL(path)
    runtime.m2_run.restype = ctypes.c_void_p
    runtime.m2_run.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)]
    runtime.m2_free.argtypes = [ctypes.c_void_p]
    return runtime


@functools.cache
def _handle(path: str) -> int:
    return ctypes.CDLL(path)._handle


def _run_apart(kernel: Kernel, job: bytes, seconds: float | None) -> tuple[bytes, list[Finding]]:
    sanitizer = kernel.variant.sanitizer
    program = runtime_program(sanitizer)
    with tempfile.TemporaryDirectory(prefix="m2ml-launch-") as folder:
        job_file, result_file = Path(folder, "job"), Path(folder, "result")
        job_file.write_bytes(job)
        command: list[str | Path] = [*prefix(sanitizer), program, kernel.built.path, job_file, result_file]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                env=environment(sanitizer),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KernelTimeout(
                f"{kernel.signature.name} did not end within {seconds:g} s: does it loop, or wait for another thread?"
            ) from None
        reports = [_own(report, kernel) for report in read_report(done.stderr, sanitizer, kernel.built.path)]
        if result_file.exists():
            return result_file.read_bytes(), reports
    if reports:
        return _HEAD.pack(0, 0, 0), reports
    raise KernelFault(f"{kernel.signature.name} ended its process with {done.returncode}: {done.stderr.strip()[-500:]}")


def _decode(kernel: Kernel, raw: bytes, wanted: Mapping[int, Output], reports: Sequence[Finding]) -> Result:
    failed, length, counted = _HEAD.unpack_from(raw)
    lines = raw[_HEAD.size : _HEAD.size + length].decode().splitlines()
    findings = [_finding(line, kernel) for line in lines]
    if failed:
        fatal = next(finding for line, finding in zip(lines, findings, strict=True) if line.split("\t")[6] == "1")
        raise KernelFault(f"{kernel.signature.name}: {fatal}")
    arrays, offset = {}, _HEAD.size + length + counted
    for index, output in wanted.items() if len(raw) > offset else ():
        count = int(np.prod(output.shape, dtype=np.int64))
        arrays[index] = np.frombuffer(raw, output.dtype, count, offset).reshape(output.shape).copy()
        offset += count * output.dtype.itemsize
    told = raw[_HEAD.size + length : _HEAD.size + length + counted].decode()
    return Result(arrays, (*findings, *reports), read_counts(told, kernel) if told else None)


def _finding(line: str, kernel: Kernel) -> Finding:
    kind, file, number, count, thread, group, _, counter, what = line.split("\t")
    thread_at, group_at = (tuple(map(int, text.split(","))) for text in (thread, group))
    found = Finding(kind, file or kernel.file, int(number), what, int(count), thread_at, group_at)
    if int(counter):
        file, number_at = place_of(str(kernel.built.path), int(counter))
        found = _own(replace(found, file=file, line=number_at), kernel)
    return found


def _own(finding: Finding, kernel: Kernel) -> Finding:
    return replace(finding, file=_own_file(finding.file, kernel) or kernel.file)


def _own_file(file: str, kernel: Kernel) -> str:
    """Debug information puts the compiler's folder before a relative name."""
    return kernel.file if file.endswith(f"/{kernel.file}") else file
