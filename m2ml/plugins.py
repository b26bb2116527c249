"""Discovery of plugins and registration of backends.

A plugin is a distribution with an entry point in the group ``m2ml`` that names a module. The module implements
hooks marked with `hookimpl`; hooks only register, they never run per call. Each plugin is loaded in its own
``try``: one that fails costs itself, and its reason is given when its backend is asked for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from m2ml.backend import Backend
from m2ml.errors import BackendNotFound, BackendUnavailable, reason
from m2ml.kernel import Kernel, kernels
from m2ml.op import Op, ops

GROUP = "m2ml"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

#: ``register(name, factory, about=, install=, variants=)``: ``factory()`` imports the engine and gives it or
#: raises; `HookSpecs.m2ml_register_backends` says what the others are.
Register = Callable[..., None]


class HookSpecs:
    """The hooks a plugin may implement."""

    @hookspec
    def m2ml_register_backends(self, register: Register) -> None:
        """Call ``register(name, factory, about="what it is", install="pip install ...")`` for each backend.

        Optional: ``variants()`` gives the ways in which it can run here, each with the environment variables that
        choose it, without starting any: ``m2ml verify`` tries all.
        """

    @hookspec
    def m2ml_register_kernels(self, register: Callable[[Kernel], None]) -> None:
        """Call ``register(m2ml.Kernel(...))`` for each kernel."""

    @hookspec
    def m2ml_register_ops(self, register: Callable[[Op], None]) -> None:
        """Call ``register(op)`` for each op that the plugin adds, so that the suite and the tables find it."""


@dataclass
class _Registered:
    factory: Callable[[], Backend]
    plugin: str
    about: str
    install: str
    variants: Callable[[], Mapping[str, Mapping[str, str]]] = dict
    backend: Backend | None = None
    error: Exception | None = None


@dataclass
class Registry:
    """Backends by name. Discovery happens on first use; a backend is created when it is first asked for."""

    _entries: dict[str, _Registered] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _discovered: bool = False
    _lock: Any = field(default_factory=threading.RLock)

    def register(
        self,
        name: str,
        factory: Callable[[], Backend],
        *,
        about: str = "",
        install: str = "",
        variants: Callable[[], Mapping[str, Mapping[str, str]]] = dict,
        plugin: str = "this program",
    ) -> None:
        """Add a backend. Raises ValueError when the name is taken."""
        if name in self._entries or name == "auto":
            owner = self._entries[name].plugin if name in self._entries else "m2ml"
            raise ValueError(f"backend name {name!r} is already registered by {owner}; choose another name")
        self._entries[name] = _Registered(factory, plugin, about, install, variants)

    def discover(self) -> None:
        """Load every entry point once; failures are kept by entry-point name."""
        with self._lock:
            if self._discovered:
                return
            self._discovered = True
            for entry in importlib.metadata.entry_points(group=GROUP):
                try:
                    self.load(entry.name, entry.load())
                except Exception as error:  # a plugin is a stranger's code: it may fail in any way, alone
                    self._failures[entry.name] = reason(error)

    def load(self, plugin: str, module: Any) -> None:
        """Run the hooks of one plugin."""
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(HookSpecs)
        manager.register(module, plugin)
        manager.check_pending()

        manager.hook.m2ml_register_backends(register=functools.partial(self.register, plugin=plugin))
        manager.hook.m2ml_register_kernels(register=kernels.register)
        manager.hook.m2ml_register_ops(register=ops.register)

    def names(self) -> tuple[str, ...]:
        """Every registered name, whether or not it runs here."""
        self.discover()
        return tuple(self._entries)

    def about(self, name: str) -> str:
        """One line on a registered backend."""
        self.discover()
        return self._entries[name].about

    def notes(self, name: str) -> tuple[str, ...]:
        """What the error that keeps a backend from running adds to its reason (``error.add_note``)."""
        entry = self._entries.get(name)
        return tuple(getattr(entry.error, "__notes__", ())) if entry else ()

    def variants(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """The ways in which a registered backend can run here, and the environment that chooses each."""
        self.discover()
        return self._entries[name].variants()

    def get(self, name: str) -> Backend:
        """The backend called ``name``. Raises when it is unknown, failed to load, or cannot run here."""
        self.discover()
        if name not in self._entries:
            raise BackendNotFound(self._unknown(name))
        entry = self._entries[name]
        with self._lock:
            if entry.backend is None and entry.error is None:
                try:
                    entry.backend = entry.factory()
                except Exception as error:  # whatever an engine's import raises becomes the reason
                    entry.error = error
        if entry.backend is None:
            assert entry.error
            install = f"; install it with: {entry.install}" if entry.install else ""
            raise BackendUnavailable(
                f"backend {name!r} does not run here: {reason(entry.error)}{install}"
            ) from entry.error
        return entry.backend

    def _unknown(self, name: str) -> str:
        if name in self._failures:
            return f"the plugin of backend {name!r} failed to load: {self._failures[name]}"
        return f"there is no backend {name!r}; registered are {', '.join(sorted(self._entries)) or 'none'}, and 'auto'"

    def loaded(self) -> tuple[Backend, ...]:
        """Backends created so far."""
        return tuple(e.backend for e in self._entries.values() if e.backend is not None)

    def available(self) -> dict[str, Backend]:
        """Backends that run here, by name."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.get(name)
            except BackendUnavailable:
                continue
        return found

    def reasons(self) -> Mapping[str, str]:
        """Why each registered backend or plugin that does not run here does not."""
        reasons = dict(self._failures)
        for name in self.names():
            try:
                self.get(name)
            except BackendUnavailable as error:
                reasons[name] = str(error)
        return reasons


#: The process's registry.
registry = Registry()
kernels.discover = registry.discover
kernels.device_name = lambda backend: registry.get(backend).devices()[0].name
