"""`XlaBackend`: what cpu, jax_metal and cuda build on. The engine is JAX itself on one platform."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from m2ml import compat, kernel
from m2ml.backend import Device, Executable, Gap, MemoryStats
from m2ml.errors import (
    BackendUnavailable,
    ExecutionError,
    OutOfMemory,
    UnsupportedDtype,
    UnsupportedPrimitive,
    in_one_line,
)
from m2ml.interpreter import Equation
from m2ml.program import Program


class XlaBackend:
    """Runs programs through ``jax.jit`` on the first device of ``platform``.

    ``donates`` is whether the platform can reuse the buffers of donated arguments; where it cannot they are kept.
    """

    donates = True

    gaps: Sequence[Gap] = tuple(
        Gap("*", name, "XLA runs no program on it") for name in ("float6_e2m3fn", "float6_e3m2fn", "int1", "uint1")
    )

    def __init__(self, name: str, platform: str) -> None:
        self.name = name
        self.platform = platform
        try:
            self.device = jax.devices(platform)[0]
        except RuntimeError as error:
            raise BackendUnavailable(f"JAX has no {platform!r} device: {error}") from error
        kernel.platforms[platform] = name
        self._devices = frozenset(jax.devices(platform))
        self._is_default = jax.devices()[0] in self._devices
        self._is_alone = self._is_default and not compat.may_have_other_platforms()
        self._apply: Callable[..., Any] = jax.jit(_bind, static_argnums=0)

    def devices(self) -> Sequence[Device]:
        return tuple(
            Device("cpu" if d.platform == "cpu" else "gpu", f"{d.device_kind} (XLA {d.platform})", _memory_limit(d))
            for d in jax.devices(self.platform)
        )

    def place(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn``, run on this backend's device; jax.jit itself, with nothing around it, where there is no other."""
        if self._is_alone:
            return fn

        def placed(*args: Any, **kwargs: Any) -> Any:
            if any(map(self._elsewhere, jax.tree.leaves((args, kwargs)))):
                args, kwargs = jax.tree.map(self._here, (args, kwargs))
            with jax.default_device(self.device):
                return fn(*args, **kwargs)

        return placed

    def _elsewhere(self, leaf: Any) -> bool:
        """Whether ``leaf`` is an array of another platform."""
        return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and not self.owns(leaf)

    def _here(self, leaf: Any) -> Any:
        return jax.device_put(leaf, self.device) if self._elsewhere(leaf) else leaf

    def jit(self, jitted: Callable[..., Any]) -> Callable[..., Any]:
        """Use JAX's own dispatch: ``jitted`` is a ``jax.jit`` function."""
        return self.place(jitted)

    def compile(self, program: Program) -> Executable:
        for dtype in {aval.dtype for aval in program.code.avals}:
            self._check_dtype(dtype, f"in {program.name}")
        donated = [i for i, given in enumerate(program.donated) if given and self.donates]
        flat = jax.jit(compat.on_physical_arrays(program.jaxpr), donate_argnums=donated)
        return self.place(_refusing(flat, program))

    def _check_dtype(self, dtype: Any, where: str) -> None:
        name = np.dtype(dtype).name
        for gap in self.gaps:
            if (gap.primitive, gap.dtype) == ("*", name):
                raise UnsupportedDtype(f"{self.name} has no {name} ({where}): {gap.reason}; use another dtype")

    def apply(self, equation: Equation, arrays: Sequence[Any]) -> list[Any]:
        return list(self.place(self._apply)(equation, *arrays))

    def from_host(self, array: np.ndarray[Any, Any]) -> Any:
        return self.from_hosts([array])[0]

    def from_hosts(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
        """`from_host` of many arrays, in a third of the time."""
        for dtype in {array.dtype for array in arrays}:
            self._check_dtype(dtype, f"an array put on {self.name}")
        put: list[Any] = jax.device_put(list(arrays), None if self._is_default else self.device)
        return put

    def to_host(self, array: Any) -> np.ndarray[Any, Any]:
        with _explained(f"a program on {self.name}"):
            return np.asarray(array)

    def owns(self, array: Any) -> bool:
        return isinstance(array, jax.Array) and not self._devices.isdisjoint(array.devices())

    def wait(self, arrays: Sequence[Any]) -> None:
        with _explained(f"a program on {self.name}"):
            jax.block_until_ready(list(arrays))

    def memory(self) -> MemoryStats:
        stats = self.device.memory_stats() or {}
        return MemoryStats(stats.get("bytes_in_use"), stats.get("peak_bytes_in_use"))


def _bind(equation: Equation, *arrays: Any) -> list[Any]:
    return equation.bind(*arrays)


def _memory_limit(device: Any) -> int | None:
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return int(limit) if limit is not None else None


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """The errors of the contract in place of XLA's, each on one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(f"{what} does not fit into the device's memory: {in_one_line(error)}") from error
        raise ExecutionError(f"{what} failed in XLA: {in_one_line(error)}") from error


def _refusing(fn: Callable[..., Any], program: Program) -> Callable[..., Any]:
    """``fn``, which refuses a primitive that XLA has no rule for."""

    def run(*args: Any) -> Any:
        try:
            with _explained(program.name):
                return fn(*args)
        except NotImplementedError as error:
            lacking = [e.describe() for e in program.code.equations() if f"'{e.name}'" in str(error)]
            raise UnsupportedPrimitive(f"XLA has no rule for {lacking[0] if lacking else error}") from error

    return run
