"""Kernels: implementations of ops for one backend. They never change what an op means.

A plugin registers `Kernel` records through the hook ``m2ml_register_kernels``. For each call of an op a backend asks
`select`: the kernel of highest priority that takes the device, the dtypes and the arguments, or else the definition.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from m2ml import compat
from m2ml.interpreter import Keep

if TYPE_CHECKING:
    from m2ml.op import OpCall

#: Says "" to take a call and otherwise why not: ``accepts(*args, **static)`` with `jax.ShapeDtypeStruct` for arrays.
Accepts = Callable[..., str]


def _anything(*args: Any, **static: Any) -> str:
    return ""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One implementation of an op on one backend.

    ``load()`` gives the function, which takes what the op takes, on the backend's own arrays (on XLA backends it is
    traced); it may compile, and a kernel whose ``load`` raises is passed over with the reason. ``devices`` are device
    kinds (``"cpu"``, ``"gpu"``, ``"metal (host)"``); ``dtypes`` those of the floating arrays it takes.
    """

    op: str
    backend: str
    name: str
    load: Callable[[], Callable[..., Any]]
    devices: tuple[str, ...] = ("cpu", "gpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    accepts: Accepts = _anything
    priority: int = 0
    source: str = ""
    about: str = ""

    @functools.cached_property
    def loaded(self) -> Callable[..., Any] | Exception:
        """The function, or what went wrong when it was loaded; loaded once."""
        try:
            return self.load()
        except Exception as error:  # a kernel is a stranger's code, and compilers fail in many ways
            return error


@dataclass(frozen=True)
class Selection:
    """What runs a call: a kernel, or the definition when it is None; ``reasons`` say why the others do not."""

    call: OpCall
    kernel: Kernel | None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Callable[..., list[Any]] | None:
        """The kernel on flat arrays, or None."""
        if self.kernel is None:
            return None
        function = self.kernel.loaded
        assert not isinstance(function, Exception)
        call = self.call
        return lambda *leaves: jax.tree.leaves(call.run(function, leaves), is_leaf=lambda x: hasattr(x, "dtype"))


@dataclass
class Kernels:
    """Registered kernels by op and backend, best first."""

    _records: dict[tuple[str, str], list[Kernel]] = field(default_factory=dict)
    discover: Callable[[], None] = lambda: None

    def register(self, record: Kernel) -> None:
        """Add a kernel. Raises ValueError when its op and backend have one of that name."""
        records = self._records.setdefault((record.op, record.backend), [])
        if any(known.name == record.name for known in records):
            raise ValueError(f"op {record.op} on {record.backend} has a kernel {record.name!r} already; rename one")
        records.append(record)
        records.sort(key=lambda known: -known.priority)

    def of(self, op: str, backend: str) -> Sequence[Kernel]:
        """The kernels of an op on a backend, best first."""
        self.discover()
        return self._records.get((op, backend), ())

    def all(self) -> list[Kernel]:
        self.discover()
        return [record for records in self._records.values() for record in records]


#: The process's kernels; `m2ml.plugins` sets ``discover``, which loads the plugins that register them.
kernels = Kernels()


#: XLA platform -> the backend whose kernels it uses, where their names differ.
platforms: dict[str, str] = {}


def select(call: OpCall, avals: Sequence[Any], backend: str, device: str) -> Selection:
    """What runs ``call`` on arrays of these types, on a device of this kind of ``backend``."""
    if not call.kernels or os.environ.get("M2ML_KERNELS") == "0":
        return Selection(call, None, {"kernels": "switched off"})
    reasons: dict[str, str] = {}
    for record in kernels.of(call.name, backend):
        reason = _declines(record, call, avals, device)
        if not reason:
            return Selection(call, record, reasons)
        reasons[record.name] = reason
    return Selection(call, None, reasons)


def _declines(record: Kernel, call: OpCall, avals: Sequence[Any], device: str) -> str:
    """Why ``record`` does not take the call, or ""."""
    if device not in record.devices:
        return f"it is for {' and '.join(record.devices)}, not {device}"
    other = sorted({np.dtype(a.dtype).name for a in avals if compat.is_inexact(a.dtype)} - set(record.dtypes))
    if other:
        return f"it does not take {', '.join(other)}"
    reason = call.run(record.accepts, avals)
    if reason:
        return reason
    loaded = record.loaded
    return " ".join(str(loaded).split()) or type(loaded).__name__ if isinstance(loaded, Exception) else ""


def keeper(backend: str, device: str) -> Keep:
    """What `Program.code_with_ops` takes so that kernels of ``backend`` run on a device of this kind."""
    return lambda call, avals: select(call, avals, backend, device).run
