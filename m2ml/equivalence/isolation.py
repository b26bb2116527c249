"""Run a backend in a process of its own, so that one that dies or hangs costs its own result only.

The parent writes the call (functions by value, where no module has them) to a folder and starts
a fresh Python, which traces it again, runs it and writes what it found beside it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from m2ml import arrays, compat
from m2ml.equivalence.bisect import first_disagreement
from m2ml.equivalence.calls import Call, Grad, call_of
from m2ml.equivalence.measure import run_program
from m2ml.errors import M2mlError, how_it_ended, in_one_line, last_words
from m2ml.staged import Staged

#: Seconds a backend has when ``isolated=True`` gives none.
TIME_LIMIT = 600.0

#: Settings of JAX that change what is traced.
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")

#: What is asked of the process: a function of a call and a backend's name.
_TASKS: Mapping[str, Callable[[Call, str], Any]] = {
    "run": lambda call, backend: run_program(backend, call.program, call.host),
    "bisect": lambda call, backend: first_disagreement(call.program, call.host, backend),
}


@dataclass(frozen=True)
class _Key:
    """Typed random keys on their way to another process."""

    implementation: str
    data: Any


def _packed(leaf: Any) -> Any:
    if arrays.is_foreign(leaf):
        leaf = arrays.to_host(leaf)
    if isinstance(leaf, jax.Array) and compat.is_key(leaf.dtype):
        return _Key(compat.key_impl_name(leaf.dtype), jax.random.key_data(leaf))
    return leaf


def _unpacked(leaf: Any) -> Any:
    return jax.random.wrap_key_data(leaf.data, impl=leaf.implementation) if isinstance(leaf, _Key) else leaf


@dataclass(frozen=True)
class Isolated:
    """A call that other processes can make: `run` gives a backend's outputs, `bisect` what it gets wrong first."""

    payload: bytes
    fingerprint: str
    time_limit: float

    def run(self, backend: str) -> Any:
        """The outputs of the call on ``backend``. Raises `m2ml.M2mlError` when its process fails, dies or hangs."""
        return self._ask("run", backend)

    def bisect(self, backend: str) -> Any:
        return self._ask("bisect", backend)

    def _ask(self, task: str, backend: str) -> Any:
        with tempfile.TemporaryDirectory(prefix="m2ml-isolated-") as folder:
            Path(folder, "call").write_bytes(self.payload)
            Path(folder, "task").write_bytes(pickle.dumps((task, backend, self.fingerprint, sys.path)))
            command = [sys.executable, "-c", f"from {__name__} import serve; serve({folder!r})"]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=self.time_limit, check=False
                )
            except subprocess.TimeoutExpired as error:
                said = f"{backend} was stopped after {self.time_limit:g} s without a result"
                raise M2mlError(f"{said}; give it longer with isolated=SECONDS") from error
            print(done.stdout, end="")
            result = Path(folder, "result")
            if done.returncode != 0 or not result.exists():
                raise M2mlError(f"the process of {backend} {how_it_ended(done.returncode)}{last_words(done.stderr)}")
            ok, value = pickle.loads(result.read_bytes())
        if not ok:
            raise M2mlError(value)
        return value


def isolated(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], grad: Grad, call: Call, limit: bool | float
) -> Isolated:
    """A call, traced here as ``call``, for other processes. Raises `m2ml.M2mlError` when it cannot be sent to one."""
    import cloudpickle

    staged: Staged = getattr(fn, "staged", None) or Staged(fn)
    settings = {name: getattr(jax.config, name) for name in _SETTINGS if hasattr(jax.config, name)}
    options = (staged.static, staged.donate, staged.strict, staged.debug, staged.kernels)
    packed = jax.tree.map(_packed, (tuple(args), dict(kwargs)))
    try:
        payload = cloudpickle.dumps((settings, staged.fn, options, packed, grad))
    except Exception as error:
        said = f"{staged.name} cannot run isolated, since it cannot be pickled: {in_one_line(error)}"
        raise M2mlError(said) from error
    return Isolated(payload, call.program.fingerprint, TIME_LIMIT if limit is True else float(limit))


def serve(name: str) -> None:
    """Answer what the parent asks in folder ``name``."""
    folder = Path(name)
    task, backend, fingerprint, sys.path[:] = pickle.loads((folder / "task").read_bytes())
    try:
        answer = True, _TASKS[task](_received(folder, fingerprint), backend)
    except Exception as error:  # what the backend raises is the answer
        answer = False, f"{type(error).__name__}: {in_one_line(error)}"
    partial = folder / "partial"
    partial.write_bytes(pickle.dumps(answer))
    partial.replace(folder / "result")


def _received(folder: Path, fingerprint: str) -> Call:
    settings, fn, options, packed, grad = pickle.loads((folder / "call").read_bytes())
    for name, value in settings.items():
        jax.config.update(name, value)
    args, kwargs = jax.tree.map(_unpacked, packed, is_leaf=lambda x: isinstance(x, _Key))
    staged = Staged(fn, *options)
    call = call_of(_Sent(staged), args, kwargs, grad)
    if call.program.fingerprint != fingerprint:
        raise M2mlError(f"{staged.name} traces to another program in a fresh process; it depends on what ran before it")
    return call


@dataclass(frozen=True)
class _Sent:
    """Stands for the function in `call_of`, which asks a jitted function for what it is made of."""

    staged: Staged

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.staged.fn(*args, **kwargs)
