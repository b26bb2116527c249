"""`tune`: time every implementation of the ops in a program on its own arrays, and remember the fastest.

The program runs once, equation by equation, so that each op meets the arrays it will meet; at every call of a new kind
the kernels that take it and the definition are compiled alone and timed in turn. What is remembered is read whenever
a program with such a call is compiled, in this process and others (`m2ml.winners`).
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import arrays, kernel, selection, winners
from m2ml.cache import ENVIRONMENT
from m2ml.control import CONTROL_FLOW, run_control_flow
from m2ml.equivalence.calls import Grad, call_of
from m2ml.errors import FallbackWarning, M2mlError, in_one_line
from m2ml.interpreter import Code, Equation, Step, evaluate, short
from m2ml.op import OpCall
from m2ml.plugins import registry
from m2ml.staged import Staged
from m2ml.winners import DEFINITION, Key, Measured, milliseconds

#: Rounds at most in which each implementation is timed once.
ROUNDS = 20

#: What the kernel that priority chooses may be slower and still be kept: less is not told from noise.
MARGIN = 0.05


@dataclass(frozen=True)
class Tuned:
    """One kind of call of an op: how often the program has it, what was measured, and why other kernels were not."""

    call: str
    count: int
    measured: Measured | None
    declined: Mapping[str, str]

    @property
    def lines(self) -> list[str]:
        times = f" ({self.count} calls)" if self.count > 1 else ""
        if self.measured is None:
            return [f"{self.call}{times}: its definition; no kernel takes it", *self._notes(self.declined)]
        ran = sorted(self.measured.times.items(), key=lambda item: item[1])
        shown = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in ran)
        notes = {name: f"failed: {why}" for name, why in self.measured.failed.items()} | dict(self.declined)
        return [f"{self.call}{times}: {self.measured.winner}; {shown}", *self._notes(notes)]

    @staticmethod
    def _notes(reasons: Mapping[str, str]) -> list[str]:
        return [f"  {name}: {reason}" for name, reason in reasons.items()]


@dataclass(frozen=True)
class Tuning:
    """What `tune` measured. ``str()`` of it is the report."""

    program: str
    backend: str
    device: str
    calls: Sequence[Tuned] = field(default_factory=tuple)

    @property
    def text(self) -> str:
        lines = [f"{self.program} on {self.backend}: {self.device}"]
        for tuned in self.calls:
            lines += tuned.lines
        if not self.calls:
            lines.append("it calls no ops of m2ml.ops, so there is nothing to choose")
        if any(tuned.measured for tuned in self.calls):
            lines.append(f"remembered in {winners.folder()}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def tune(
    fn: Callable[..., Any],
    /,
    *args: Any,
    backend: str | None = None,
    grad: Grad = False,
    seconds: float = 1.0,
    **kwargs: Any,
) -> Tuning:
    """Time the kernels and the definition of every op that ``fn`` calls, on these arguments, and remember the fastest.

    Later compilations use it, here and in other processes, for calls with the same shapes, dtypes and static arguments
    on the same device and with the same kernels; `Jitted.explain` shows the times. Functions compiled before are
    compiled again where a choice changed. Tuning again measures again.

    Args:
      fn: a function, or one made by `m2ml.jit`. Flax NNX modules may be arguments; they are not updated.
      backend: the backend to tune; the one in force if not given.
      grad: also tune what the gradient calls: ``True``, or the arguments to differentiate, as `m2ml.compare` takes it.
      seconds: each implementation of a call is timed for about this long, at most 20 times; its median counts.

    The kernel that would run anyway is kept unless another implementation is 5 % faster. Raises `m2ml.M2mlError` where
    nothing can be measured.

    >>> import m2ml, jax.numpy as jnp
    >>> print(m2ml.tune(jnp.sin, jnp.ones(3), backend="cpu"))  # doctest: +ELLIPSIS
    sin on cpu: ...
    it calls no ops of m2ml.ops, so there is nothing to choose
    """
    from m2ml.op_primitive import forget  # imports Pallas

    name = selection.check_name(backend or selection.current())
    if name == "auto":
        raise M2mlError("auto is no backend of its own: name the one to tune, tune(..., backend='cpu')")
    if not seconds > 0:
        raise M2mlError(f"seconds is {seconds}; it must be above 0")
    _refuse_types(args, kwargs)
    call = call_of(fn, args, kwargs, grad)
    tuner = _Tuner(registry.get(name), seconds)
    tuner.run_program(call.program.code_with_ops(tuner.keep), call.program.donated, call.host)
    if tuner.changed:
        jax.clear_caches()
        forget()
        getattr(fn, "staged", Staged(fn)).callers.clear()
    device = tuner.engine.devices()[0]
    return Tuning(call.program.name, name, f"{device.name} ({device.kind})", tuner.report())


def _refuse_types(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for leaf in jax.tree.leaves((args, kwargs)):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise M2mlError(f"tune runs the function, so it takes arrays; got the type {short(leaf)}")


class _Tuner:
    """Runs a program on an engine and measures each kind of call when it meets the first."""

    def __init__(self, engine: Any, seconds: float) -> None:
        self.engine, self.seconds = engine, seconds
        self.kind = engine.devices()[0].kind
        self.changed = False
        self._found: dict[Any, Tuned] = {}
        self._counts: dict[Any, int] = {}
        self._takers: dict[Any, list[str]] = {}
        self._dead: dict[int, tuple[bool, ...]] = {}
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def report(self) -> list[Tuned]:
        return [replace(tuned, count=self._counts[what]) for what, tuned in self._found.items()]

    def keep(self, call: OpCall, avals: Sequence[Any]) -> Callable[..., Any] | None:
        """Calls that some kernel takes stay whole; of the others the ops that their definitions call are looked at."""
        what = _kind(call, avals)
        self._counts[what] = self._counts.get(what, 0) + 1
        if what not in self._takers:
            self._takers[what], declined = self._candidates(call, avals)
            if not self._takers[what]:
                self._found[what] = Tuned(_described(call, avals), 1, None, declined)
        if not self._takers[what]:
            return None
        return lambda *leaves: self._default(call, leaves)(*leaves)

    def _candidates(self, call: OpCall, avals: Sequence[Any]) -> tuple[list[str], dict[str, str]]:
        """Kernels that take such a call, best first, and why the others do not."""
        if not call.kernels:
            return [], {"kernels": "switched off"}
        takers, declined = [], {}
        for record in kernel.kernels.of(call.name, self.engine.name):
            reason = kernel.refuses(record, call, avals, self.kind) or kernel.fails(record)
            if reason:
                declined[record.name] = reason
            else:
                takers.append(record.name)
        return takers, declined

    def run_program(self, code: Code, donated: Sequence[bool], host: Sequence[Any]) -> None:
        kept = [slot for slot, given in zip(code.inputs, donated, strict=False) if not given]
        kept += code.inputs[len(donated) :]
        self._run(code, [self.engine.from_host(x) for x in host], frozenset(kept))

    def _run(self, code: Code, args: Sequence[Any], kept: frozenset[int] | None = None) -> list[Any]:
        reserved = frozenset(code.inputs) if kept is None else kept
        for step in code.steps:
            self._dead[id(step.equation)] = _last_uses(step, reserved)
        return evaluate(code, self._apply, self.engine.from_host, args)

    def _apply(self, equation: Equation, natives: Sequence[Any]) -> list[Any]:
        if equation.name in CONTROL_FLOW:
            return run_control_flow(equation, natives, self._run, self.engine.to_host, self._stack)
        if equation.kernel is None:
            return list(self.engine.apply(equation, natives))
        call = equation.bind_params["call"]
        what = _kind(call, equation.inputs)
        if what not in self._found:
            self._found[what] = self._measure(call, equation, natives)
        return list(equation.kernel(*natives))

    def _stack(self, rows: Sequence[Any], aval: Any) -> Any:
        host = np.stack([self.engine.to_host(r) for r in rows]) if rows else np.zeros(aval.shape, aval.dtype)
        return self.engine.from_host(host)

    def _measure(self, call: OpCall, equation: Equation, natives: Sequence[Any]) -> Tuned:
        takers, declined = self._candidates(call, equation.inputs)
        measured = self._times([*takers, DEFINITION], call, natives, self._dead[id(equation)])
        key = kernel.winner_key(call, equation.inputs, self.engine.name)
        before = winners.recall(key)
        self.changed |= measured.winner != (before.winner if before else takers[0])
        _remember(key, measured)
        return Tuned(_described(call, equation.inputs), 1, measured, declined)

    def _times(self, names: Sequence[str], call: OpCall, natives: Sequence[Any], dead: Sequence[bool]) -> Measured:
        """In turn, so that what else the machine does meets all alike; the first is kept within `MARGIN`."""
        found: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        fresh, runs = self._copier(natives, dead), dict[str, Callable[..., Any]]()
        for name in names:
            try:
                runs[name] = self._single(call, natives, dead, name)
                self._time(runs[name], fresh)
                found[name] = []
            except (M2mlError, RuntimeError, ValueError, TypeError) as error:
                failed[name] = in_one_line(error)
        end = time.perf_counter() + self.seconds * len(found)
        while found and len(next(iter(found.values()))) < ROUNDS:
            for name, times in found.items():
                times.append(self._time(runs[name], fresh))
            if time.perf_counter() > end:
                break
        medians = {name: float(np.median(times)) for name, times in found.items()}
        if not medians:
            raise M2mlError(f"no implementation of {call.name} runs on {self.engine.name}: {failed}")
        best = min(medians, key=lambda name: medians[name])
        first = next(name for name in names if name in medians)
        return Measured(first if medians[first] <= medians[best] * (1 + MARGIN) else best, medians, failed)

    def _time(self, run: Callable[..., Any], fresh: Callable[[], Sequence[Any]]) -> float:
        natives = fresh()
        begin = time.perf_counter()
        self.engine.wait(run(*natives))
        return time.perf_counter() - begin

    def _copier(self, natives: Sequence[Any], dead: Sequence[bool]) -> Callable[[], Sequence[Any]]:
        """Gives the arguments, those that may be overwritten as copies."""
        given = [i for i, d in enumerate(dead) if d]
        copy = self._compile(lambda *xs: [jnp.copy(x) for x in xs], [natives[i] for i in given]) if given else None

        def fresh() -> Sequence[Any]:
            every = list(natives)
            if copy:
                copies = copy(*(natives[i] for i in given))
                self.engine.wait(copies)
                for i, x in zip(given, copies, strict=True):
                    every[i] = x
            return every

        return fresh

    def _single(self, call: OpCall, natives: Sequence[Any], dead: Sequence[bool], name: str) -> Callable[..., Any]:
        """The call alone, run by the implementation of that name."""
        with kernel.only(call, name):
            run = self._compile(lambda *xs: jax.tree.leaves(call(*xs)), natives, dead)
            self.engine.wait(run(*self._copier(natives, dead)()))  # XLA compiles at the first call
        return run

    def _default(self, call: OpCall, natives: Sequence[Any]) -> Callable[..., Any]:
        """The call alone, run by what is selected."""
        what = _kind(call, natives)
        if what not in self._compiled:
            self._compiled[what] = self._compile(lambda *xs: jax.tree.leaves(call(*xs)), natives)
        return self._compiled[what]

    def _compile(
        self, fn: Callable[..., Any], natives: Sequence[Any], donated: Sequence[bool] = ()
    ) -> Callable[..., Any]:
        program = Staged(fn).trace([arrays.aval_of(x) for x in natives], {})
        program = replace(program, donated=tuple(donated) or (False,) * len(natives))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            run = self.engine.compile(program)

        @functools.wraps(run)
        def quiet(*xs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Some donated buffers were not usable")
                return run(*xs)

        return quiet


def _last_uses(step: Step, kept: frozenset[int]) -> tuple[bool, ...]:
    """Which arguments of a step nobody reads afterwards, so that it may write over them; each array once."""
    flags = [slot in step.last and slot not in kept for slot in step.inputs]
    return tuple(
        flag and slot not in step.inputs[:i] for i, (flag, slot) in enumerate(zip(flags, step.inputs, strict=True))
    )


def _kind(call: OpCall, arrays_: Sequence[Any]) -> Any:
    return call, tuple((tuple(x.shape), str(x.dtype)) for x in arrays_)


def _described(call: OpCall, avals: Sequence[Any]) -> str:
    """``rms_norm(float32[4,64], eps=1e-05)``: the arrays, and static arguments that are not what the op has anyway."""
    defaults = {name: p.default for name, p in call.op.signature.parameters.items()}
    static = dict(call.static)
    static |= dict(static.pop("static", ()))  # a backward op has those of its forward op as one
    given = [f"{name}={value}" for name, value in static.items() if value != defaults.get(name)]
    return f"{call.name}({', '.join([*map(short, avals), *given])})"


def _remember(key: Key, measured: Measured) -> None:
    try:
        winners.remember(key, measured)
    except OSError as error:
        said = f"m2ml tune cannot remember its measurements in {winners.folder()} ({error.strerror}); set {ENVIRONMENT}"
        raise M2mlError(said) from error
