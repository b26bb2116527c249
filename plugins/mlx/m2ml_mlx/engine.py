"""The MLX engine: compiles a program into regions and runs it on MLX's default device."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from m2ml import interpreter
from m2ml.backend import Device, Executable, Gap, MemoryStats
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.cost import nbytes
from m2ml.errors import OutOfMemory, in_one_line
from m2ml.interpreter import Code, Equation, Rule, UnsupportedPrimitive, apply_rule
from m2ml.kernel import keeper
from m2ml.program import Program
from m2ml_mlx import convert
from m2ml_mlx.gaps import GAPS
from m2ml_mlx.kernels.source import on_host
from m2ml_mlx.regions import CALLBACKS, Partition, Partitioner, Region, run_on_cpu, stack
from m2ml_mlx.rules import rules


class MlxBackend:
    """Runs programs on MLX.

    MLX's streams belong to threads, so results are dispatched before a call returns and can be used from any
    thread. A program with donated arguments is dispatched at the next call instead, or when any array is read:
    by then the caller has let go of what it donated, and MLX reuses the buffers. Such results must be waited
    for (`m2ml.wait`) before another thread reads them.
    """

    name = "mlx"
    array_type = mx.array
    gaps: Sequence[Gap] = GAPS
    rules: Mapping[str, Rule] = rules

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        """``rules`` takes the place of the engine's own table."""
        if rules is not None:
            self.rules = rules
        self.compiled = convert.on_gpu() or os.environ.get("M2ML_MLX_COMPILE") == "1"
        self._pending = threading.local()
        self._lock = threading.RLock()

    def devices(self) -> Sequence[Device]:
        if on_host():
            return (Device("metal (host)", f"{platform.machine()} (MLX {mx.__version__}, Metal kernels on the CPU)"),)
        if convert.on_gpu():
            info = mx.device_info()
            return (Device("gpu", f"{info['device_name']} (MLX)", int(info["memory_size"])),)
        return (Device("cpu", f"{platform.machine()} (MLX {mx.__version__})"),)

    def compile(self, program: Program) -> Executable:
        self._check_dtypes(program.code)
        _check_sizes(program)
        with self._lock:
            partition = self._partition(program, strict=program.strict)
        run = self._runner(partition)
        return self._deferred(run, program.name) if any(program.donated) else self._dispatched(run, program.name)

    def _partition(self, program: Program, *, strict: bool) -> Partition:
        code = program.code_with_ops(keeper(self.name, self.devices()[0].kind))
        return Partitioner(self.rules, compiled=self.compiled, strict=strict).partition(code)

    def _check_dtypes(self, code: Code) -> None:
        for aval in {(a.dtype, a.shape): a for a in code.avals}.values():
            convert.check_dtype(aval.dtype, f"in {interpreter.short(aval)} of the program")
        for body in code.bodies():
            self._check_dtypes(body)

    def _runner(self, partition: Partition) -> Callable[..., Sequence[mx.array]]:
        """Without anything around it where the whole program is one region that reads and writes its own slots."""
        if partition.single:
            region = partition.parts[0]
            assert isinstance(region, Region)
            if region.inputs == partition.code.inputs and region.outputs == partition.code.outputs:
                assert region.run is not None
                return region.run
        return lambda *args: partition(args)

    def _flush(self) -> None:
        """Dispatch the results of the last call with donated arguments."""
        waiting, self._pending.arrays = getattr(self._pending, "arrays", None), None
        if waiting:
            mx.async_eval(waiting)

    def _dispatched(self, run: Callable[..., Sequence[mx.array]], name: str) -> Executable:
        pending = self._pending

        def call(*args: mx.array) -> Sequence[mx.array]:
            try:
                if getattr(pending, "arrays", None):
                    self._flush()
                outs = run(*args)
                mx.async_eval(outs)
            except (RuntimeError, MemoryError) as error:
                raise _explain_memory(error, name) from error
            return outs

        return call

    def _deferred(self, run: Callable[..., Sequence[mx.array]], name: str) -> Executable:
        def call(*args: mx.array) -> Sequence[mx.array]:
            try:
                self._flush()
                outs = run(*args)
            except (RuntimeError, MemoryError) as error:
                raise _explain_memory(error, name) from error
            self._pending.arrays = list(outs)
            return outs

        return call

    def apply(self, equation: Equation, arrays: Sequence[mx.array]) -> list[mx.array]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, arrays, self._run, lambda x: x.item(), stack)
        if equation.name in CALLBACKS:
            return run_on_cpu(equation, arrays)
        try:
            return apply_rule(self.rules, equation, arrays)
        except UnsupportedPrimitive:
            return run_on_cpu(equation, arrays)

    def _run(self, code: Code, args: Sequence[mx.array]) -> list[mx.array]:
        return interpreter.evaluate(code, self.apply, self.from_host, args)

    def explain(self, program: Program) -> list[str]:
        """Sentences for `Jitted.explain`: the regions and what runs outside them."""
        partition = self._partition(program, strict=False)
        how = "compiled by mx.compile" if self.compiled else "built without mx.compile"
        sizes = [len(part.steps) for part in partition.parts if isinstance(part, Region)]
        driven = [part.step.equation.name for part in partition.parts if not isinstance(part, Region)]
        lines = [f"{len(sizes)} regions of {', '.join(map(str, sizes)) or 'no'} equations, {how}"]
        if driven:
            lines.append(f"driven by the host: {', '.join(driven)}")
        lines += [f"on the CPU through JAX: {p.step.equation.describe()}: {p.reason}" for p in partition.fallbacks()]
        return lines

    def from_host(self, array: np.ndarray[Any, Any]) -> mx.array:
        return convert.from_host(array)

    def to_host(self, array: mx.array) -> np.ndarray[Any, Any]:
        self._flush()  # whoever reads an older result waits while MLX works on
        return convert.to_host(array)

    def owns(self, array: Any) -> bool:
        return isinstance(array, mx.array)

    def wait(self, arrays: Sequence[mx.array]) -> None:
        self._flush()
        mx.eval(*arrays)

    def memory(self) -> MemoryStats:
        return MemoryStats(mx.get_active_memory(), mx.get_peak_memory())


def _check_sizes(program: Program) -> None:
    """Refuse an array larger than the memory: on a CPU, MLX ends the process where an allocation fails."""
    info = mx.device_info() if convert.on_gpu() else {}
    limit = int(info.get("memory_size", 0)) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for equation in program.code.equations():
        size = 0 if equation.name == "broadcast_in_dim" else max(map(nbytes, equation.outputs), default=0)
        if size > limit:
            raise OutOfMemory(
                f"{program.name} does not fit into MLX's memory of {limit:,} bytes: {equation.describe()} makes an "
                f"array of {size:,}; use a smaller batch or a smaller model"
            )


def _explain_memory(error: Exception, name: str) -> Exception:
    text = in_one_line(error)
    if isinstance(error, MemoryError) or "malloc" in text or "allocate" in text:
        return OutOfMemory(f"{name} does not fit into MLX's memory: {text}; use a smaller batch or a smaller model")
    return error
