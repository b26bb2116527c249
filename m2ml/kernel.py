"""Kernels: implementations of ops for one backend. They never change what an op means.

A plugin registers `Kernel` records through the hook ``m2ml_register_kernels``. For each call of an op a backend asks
`select`: what `m2ml.tune` measured to be fastest for such a call, or else the kernel of highest priority that takes the
device, the dtypes and the arguments, or else the definition.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from m2ml import compat, winners
from m2ml.errors import in_one_line
from m2ml.interpreter import Keep
from m2ml.winners import DEFINITION, Measured

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
    kinds (``"cpu"``, ``"gpu"``, ``"metal (host)"``); ``dtypes`` those of the floating arrays it takes. ``source`` is
    the file it is made of, or a word that changes with it, such as a library's version: what was measured with another
    source is forgotten.
    """

    op: str
    backend: str
    name: str
    load: Callable[[], Callable[..., Any]]
    devices: tuple[str, ...] = ("cpu", "gpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    accepts: Accepts = _anything
    priority: int = 0
    source: str | Path = ""
    about: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of its source and the headers beside it, and of the module that loads it."""
        digest = hashlib.sha256(f"{self.name} {self.priority} {self.source}".encode())
        files = []
        with contextlib.suppress(TypeError):  # a callable object has no file of its own
            files.append(Path(inspect.getsourcefile(self.load) or ""))
        if isinstance(self.source, Path):
            files += [self.source, *sorted(self.source.parent.glob("*.h"))]
        for file in files:
            digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()

    @functools.cached_property
    def loaded(self) -> Callable[..., Any] | Exception:
        """The function, or what went wrong when it was loaded; loaded once."""
        try:
            return self.load()
        except Exception as error:  # a kernel is a stranger's code, and compilers fail in many ways
            return error


@dataclass(frozen=True)
class Selection:
    """What runs a call: a kernel, or the definition when it is None; ``reasons`` say why the others do not.

    ``times`` are the seconds per call that `m2ml.tune` measured, by name, where it did.
    """

    call: OpCall
    kernel: Kernel | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)

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
    device_name: Callable[[str], str] = lambda backend: ""

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


#: The process's kernels; `m2ml.plugins` sets ``discover``, which loads the plugins that register them, and
#: ``device_name(backend)``.
kernels = Kernels()


#: XLA platform -> the backend whose kernels it uses, where their names differ.
platforms: dict[str, str] = {}


#: A call and the name of what must run it, while `m2ml.tune` measures that.
_only: ContextVar[tuple[OpCall, str] | None] = ContextVar("m2ml_only", default=None)


@contextlib.contextmanager
def only(call: OpCall, name: str) -> Iterator[None]:
    """Calls like ``call`` that are compiled inside are run by the kernel of this name, or by the ``definition``."""
    token = _only.set((call, name))
    try:
        yield
    finally:
        _only.reset(token)


def select(call: OpCall, avals: Sequence[Any], backend: str, device: str) -> Selection:
    """What runs ``call`` on arrays of these types, on a device of this kind of ``backend``."""
    if not call.kernels or os.environ.get("M2ML_KERNELS") == "0":
        return Selection(call, None, {"kernels": "switched off"})
    records = kernels.of(call.name, backend)
    forced = _only.get()
    if forced and forced[0] == call:
        return Selection(call, next((r for r in records if r.name == forced[1]), None))
    measured = records and winners.recall(winner_key(call, avals, backend))
    return _choose(call, avals, device, _best_first(records, measured or None), measured or Measured(""))


def winner_key(call: OpCall, avals: Sequence[Any], backend: str) -> winners.Key:
    """What times of such a call are remembered under: all that they may depend on."""
    return winners.Key(
        op=call.name,
        backend=backend,
        device=kernels.device_name(backend),
        arrays=tuple(f"{np.dtype(a.dtype).name}{list(a.shape)}" for a in avals),
        call=f"{call.static} {call.tree}",
        kernels=tuple((r.name, r.fingerprint) for r in kernels.of(call.name, backend)),
    )


def _best_first(records: Sequence[Kernel], measured: Measured | None) -> Sequence[Kernel]:
    return sorted(records, key=lambda r: r.name != measured.winner) if measured else records


def _choose(
    call: OpCall, avals: Sequence[Any], device: str, records: Sequence[Kernel], measured: Measured
) -> Selection:
    """The first of ``records`` that takes the call and was not measured to be slower than the definition."""
    chosen: Kernel | None = None
    reasons: dict[str, str] = {}
    for record in records:
        reason = refuses(record, call, avals, device)
        if not reason and (chosen or measured.winner == DEFINITION):
            reason = measured.says(record.name) or (f"{chosen.name} comes first" if chosen else "")
        reason = reason or fails(record)
        if reason:
            reasons[record.name] = reason
        else:
            chosen = record
    return Selection(call, chosen, reasons, measured.times)


def refuses(record: Kernel, call: OpCall, avals: Sequence[Any], device: str) -> str:
    """Why ``record`` is not for the call, or ""; it is not loaded."""
    if device not in record.devices:
        return f"it is for {' and '.join(record.devices)}, not {device}"
    other = sorted({np.dtype(a.dtype).name for a in avals if compat.is_inexact(a.dtype)} - set(record.dtypes))
    if other:
        return f"it does not take {', '.join(other)}"
    return str(call.run(record.accepts, avals))


def fails(record: Kernel) -> str:
    """Why ``record`` cannot be loaded, or ""."""
    loaded = record.loaded
    return in_one_line(loaded) or type(loaded).__name__ if isinstance(loaded, Exception) else ""


def keeper(backend: str, device: str) -> Keep:
    """What `Program.code_with_ops` takes so that kernels of ``backend`` run on a device of this kind."""
    return lambda call, avals: select(call, avals, backend, device).run
