"""``backend="auto"``: time the candidates on the real arguments once, and remember the winner.

The first call with new shapes runs every backend that is available, discards those whose result lies outside
the reference's measured bound, times the rest, and stores the winner under the program's fingerprint and the
machine's devices. Later calls, in this process and others, go straight to it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from m2ml import arrays
from m2ml.cache import ENVIRONMENT, cache_folder, write_json
from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.measure import host_leaves, judge_twice, measured_bounds, run_program
from m2ml.errors import BackendUnavailable, FallbackWarning, M2mlError, in_one_line
from m2ml.plugins import registry
from m2ml.program import Program

if TYPE_CHECKING:
    from m2ml.staged import Staged

#: A candidate is timed for at most this many seconds and this many runs.
SECONDS, RUNS = 1.0, 20

#: Programs with more operations or live bytes than this are too large for the reference; they go to ``cpu``.
MOST_FLOPS, MOST_BYTES = 2e11, 4e9


@dataclass(frozen=True)
class Choice:
    """A remembered winner. ``times`` are seconds per call; ``rejected`` says why a backend was passed over."""

    backend: str
    times: Mapping[str, float]
    rejected: Mapping[str, str]

    def lines(self) -> dict[str, str]:
        """Per backend, what auto measured or why it passed it over."""
        timed = {name: f"{seconds * 1e3:.3g} ms per call" for name, seconds in self.times.items()}
        timed[self.backend] = timed.get(self.backend, "not timed") + ", chosen"
        return timed | {name: f"passed over: {why}" for name, why in self.rejected.items()}


def _key(program: Program) -> str:
    devices = {name: [d.name for d in b.devices()] for name, b in sorted(registry.available().items())}
    return hashlib.sha256(json.dumps([program.fingerprint, devices], sort_keys=True).encode()).hexdigest()


def _remembered(path: Path) -> Choice | None:
    try:
        choice = Choice(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return choice if choice.backend in registry.available() else None


def _remember(path: Path, choice: Choice) -> None:
    try:
        write_json(path, asdict(choice))
    except OSError as error:
        said = f"m2ml auto cannot remember its choice in {path.parent} ({error.strerror}); set {ENVIRONMENT}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)


def _time(fn: Callable[[], Any]) -> float:
    """Median seconds of a call, after one that compiles."""
    fn()
    times: list[float] = []
    while len(times) < RUNS and (not times or sum(times) < SECONDS):
        begin = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure(program: Program, host: Sequence[np.ndarray[Any, Any]], say: Callable[[str], None]) -> Choice:
    """Time every backend on ``host`` arguments; a backend that fails or disagrees is passed over with its reason."""
    rejected = dict(registry.reasons())
    if program.cost.flops > MOST_FLOPS or program.cost.peak_bytes > MOST_BYTES:
        return Choice("cpu", {}, {"mlx": "the program is too large for the reference to check it"})
    bounds = functools.cache(lambda runs: measured_bounds(program, host, runs=runs))
    times = {}
    for name in registry.available():
        if name != "reference":
            say(f"m2ml auto: timing {program.name} on {name}")
            try:
                times[name] = _candidate(name, program, host, bounds)
            except (M2mlError, RuntimeError) as error:
                rejected[name] = in_one_line(error)
    if not times:
        raise BackendUnavailable(f"no backend gives the reference's result for {program.name}: {rejected}")
    return Choice(min(times, key=lambda name: times[name]), times, rejected)


def _candidate(name: str, program: Program, host: Sequence[Any], bounds: Callable[[int], list[Bound]]) -> float:
    """Seconds per call on one backend; raises `m2ml.Disagreement` when its result lies outside the bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        outs = run_program(name, program, host)
        judge_twice(program, {name: outs}, bounds)[0].check()
        backend = registry.get(name)
        natives = [backend.from_host(x) for x in host]
        run = backend.compile(replace(program, donated=(False,) * len(natives)))
        return _time(lambda: backend.wait(run(*natives)))


def choice_for(staged: Staged, program: Program, args: Any, kwargs: Any) -> tuple[str, dict[str, str]]:
    """The backend auto uses for a call, measuring if it is new, and what it measured."""
    choice = _choose(staged, program, args, kwargs)
    return choice.backend, choice.lines()


def _choose(staged: Staged, program: Program, args: Any, kwargs: Any) -> Choice:
    path = cache_folder() / "auto" / f"{_key(program)}.json"
    choice = _remembered(path)
    if choice is None:
        choice = measure(program, host_leaves(staged, args, kwargs), _say)
        _remember(path, choice)
    return choice


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


class Auto:
    """Runs calls of one jitted function on the backend measured to be fastest for their shapes."""

    def __init__(self, staged: Staged, caller: Callable[[str], Callable[..., Any]]) -> None:
        self.staged = staged
        self._caller = caller
        self._chosen: dict[Any, str] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        dynamic, static = self.staged.split(args, kwargs)
        leaves, tree = jax.tree_util.tree_flatten(dynamic)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.staged.jax_jit(*args, **kwargs)
        key = (tree, static, tuple((a.shape, a.dtype) for a in map(arrays.aval_of, leaves)))
        if key not in self._chosen:
            program = self.staged.trace(args, kwargs)
            self._chosen[key] = _choose(self.staged, program, args, kwargs).backend
        return self._caller(self._chosen[key])(*args, **kwargs)
