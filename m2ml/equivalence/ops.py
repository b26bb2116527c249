"""Hold every op against its definition in float64: values, laws, gradients, vmap, and that its faults are caught.

What runs is a backend's kernel where one accepts and the definition where ``kernels`` is False; what it is held
against is always the definition, run by the reference, within the bound that its own conditioning gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml import compat
from m2ml.equivalence.bounds import RUNS, Bound
from m2ml.equivalence.measure import host_leaves, judge_all, judge_twice, measured_bounds, run_program
from m2ml.errors import Disagreement
from m2ml.kernel import kernels as registered
from m2ml.kernel import select
from m2ml.op import Op, Sample
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

Function = Callable[..., Any]


@dataclass(frozen=True)
class Implementation:
    """An op on a backend, by its kernels or by its definition."""

    backend: str
    kernels: bool

    def __str__(self) -> str:
        return f"{self.backend} ({'kernels' if self.kernels else 'definition'})"

    def runs(self, fn: Function) -> Function:
        """``fn`` on this backend with NumPy results."""

        def run(*args: Any) -> Any:
            staged = Staged(fn, kernels=self.kernels)
            program = staged.trace(args, {})
            host = host_leaves(staged, args, {})
            return jax.tree.unflatten(program.out_tree, run_program(self.backend, program, host))

        return run


def implementations(op: Op, backends: Sequence[str]) -> list[Implementation]:
    """The definition on each backend, and the kernels where a backend has any for ``op`` or its backward op."""
    found = [Implementation(name, False) for name in backends]
    names = (op.name, op.backward.name)
    return found + [Implementation(b, True) for b in backends if any(registered.of(name, b) for name in names)]


def in_dtype(sample: Sample, dtype: Any) -> tuple[Any, ...]:
    """The arguments of a sample with their float32 arrays in ``dtype``."""

    def cast(x: Any) -> Any:
        array = np.asarray(x)
        with np.errstate(over="ignore"):
            return array.astype(dtype) if array.dtype == np.float32 else array

    return tuple(jax.tree.map(cast, arg) for arg in sample.args)


@dataclass(frozen=True)
class Expected:
    """What a function gives on some arguments, by the reference."""

    program: Program
    bounds_of: Callable[[int], Sequence[Bound]]

    @classmethod
    def of(cls, exact: Function, args: Sequence[Any]) -> Expected:
        wanted = Staged(exact, kernels=False)
        program = wanted.trace(args, {})
        host = host_leaves(wanted, args, {})
        return cls(program, functools.cache(lambda runs: measured_bounds(program, host, runs=runs)))

    def hold(
        self, what: str, fn: Function, args: Sequence[Any], on: Sequence[Implementation], *, hasty: bool = False
    ) -> None:
        """Raise `m2ml.Disagreement` where ``fn`` on an implementation lies outside the bounds, at a second look too."""
        for implementation in on:
            got = {str(implementation): jax.tree.leaves(implementation.runs(fn)(*args))}
            if hasty:
                report = judge_all(self.program, got, self.bounds_of(RUNS))
            else:
                report, _ = judge_twice(self.program, got, self.bounds_of)
            if not report.ok:
                raise Disagreement(f"{what}: {report}")


def assert_agrees(what: str, fn: Function, exact: Function, args: Sequence[Any], on: Sequence[Implementation]) -> None:
    """``fn`` on each implementation lies within the bound of ``exact`` on the reference."""
    Expected.of(exact, args).hold(what, fn, args, on)


def call_of(op: Op | Function, sample: Sample) -> Function:
    return lambda *args: op(*args, **sample.static)


@functools.lru_cache(maxsize=2048)
def _expected(op: Op, name: str, dtype: np.dtype[Any]) -> Expected:
    """What the definition gives on the sample of that name; its values and its faults are held against the same."""
    sample = next(sample for sample in op.samples() if sample.name == name)
    return Expected.of(call_of(op.definition, sample), in_dtype(sample, dtype))


def check_values(op: Op, sample: Sample, dtype: Any, on: Sequence[Implementation]) -> None:
    """Values on one sample. Raises `m2ml.Disagreement`."""
    expected = _expected(op, sample.name, np.dtype(dtype))
    expected.hold(f"{op.name} on {sample.name}", call_of(op, sample), in_dtype(sample, dtype), on)


def check_laws(op: Op, sample: Sample, dtype: Any, on: Implementation) -> None:
    """Every law on one sample. Raises AssertionError."""

    def run(*args: Any, **static: Any) -> Any:
        return on.runs(lambda *xs: op(*xs, **static))(*args)

    for law in op.laws:
        try:
            law(run, *in_dtype(sample, dtype), **sample.static)
        except AssertionError as error:
            raise AssertionError(f"{op.name} on {sample.name}, {on}: {law.__name__}: {error}") from error


def pullback(fn: Function, args: Sequence[Any]) -> Function:
    """``(args, cotangents) -> gradients`` of the floating results of ``fn`` for its floating arguments."""
    leaves, tree = jax.tree.flatten(tuple(args))
    floating = [i for i, x in enumerate(leaves) if compat.is_inexact(x.dtype)]

    def gradients(arguments: Any, cotangents: Any) -> Any:
        every = jax.tree.leaves(arguments)

        def of_floating(*chosen: Any) -> list[Any]:
            filled = list(every)
            for i, x in zip(floating, chosen, strict=True):
                filled[i] = x
            outs = jax.tree.leaves(fn(*jax.tree.unflatten(tree, filled)))
            return [y for y in outs if compat.is_inexact(y.dtype)]

        return jax.vjp(of_floating, *(every[i] for i in floating))[1](list(cotangents))

    return gradients


def cotangents_of(fn: Function, args: Sequence[Any]) -> list[Any]:
    """Fixed random numbers in the shapes and dtypes of the floating results."""
    rng, outs = np.random.default_rng(7), jax.tree.leaves(jax.eval_shape(fn, *args))
    return [rng.standard_normal(y.shape).astype(y.dtype) for y in outs if compat.is_inexact(y.dtype)]


def check_gradient(op: Op, sample: Sample, dtype: Any, on: Sequence[Implementation]) -> None:
    """The vector-Jacobian product against that of the definition. Raises `m2ml.Disagreement`."""
    args = in_dtype(sample, dtype)
    exact = call_of(op.definition, sample)
    given = cotangents_of(exact, args)
    fn = pullback(call_of(op, sample), args)
    assert_agrees(f"gradient of {op.name} on {sample.name}", fn, pullback(exact, args), (args, given), on)


def check_vmap(op: Op, sample: Sample, on: Sequence[Implementation]) -> None:
    """Mapped over each array argument alone, and over all. Raises `m2ml.Disagreement`."""
    leaves, tree = jax.tree.flatten(in_dtype(sample, np.float32))
    for mapped in (*((i,) for i in range(len(leaves))), tuple(range(len(leaves)))):
        stacked = [np.stack([x, x[::-1] if x.ndim else x]) if i in mapped else x for i, x in enumerate(leaves)]
        axes = [0 if i in mapped else None for i in range(len(leaves))]

        def of_leaves(function: Op | Function) -> Function:
            return lambda *xs: call_of(function, sample)(*jax.tree.unflatten(tree, xs))

        fn, exact = (jax.vmap(of_leaves(f), in_axes=axes) for f in (op, op.definition))
        assert_agrees(f"{op.name} mapped over {mapped} on {sample.name}", fn, exact, stacked, on)


def check_second_derivative(op: Op, sample: Sample, on: Sequence[Implementation]) -> None:
    """The derivative of the gradient's squares, in reverse again. Raises `m2ml.Disagreement`."""
    args = in_dtype(sample, np.float32)
    given = cotangents_of(call_of(op.definition, sample), args)

    def twice(function: Op | Function) -> Function:
        gradients = pullback(call_of(function, sample), args)

        def squares(*arguments: Any) -> Any:
            return sum(jnp.sum(g * g) for g in gradients(arguments, given))

        floating = [compat.is_inexact(x.dtype) for x in jax.tree.leaves(args)]
        return pullback(squares, args) if any(floating) else lambda a, c: ()

    one = [np.ones((), np.float32)]
    assert_agrees(f"second derivative of {op.name} on {sample.name}", twice(op), twice(op.definition), (args, one), on)


def check_transformations(op: Op, sample: Sample, on: Sequence[Implementation]) -> None:
    """Forward derivatives, and gradients through remat, scan and vmap, in one program. Raises `m2ml.Disagreement`."""
    args = in_dtype(sample, np.float32)
    given = cotangents_of(call_of(op.definition, sample), args)
    leaves, tree = jax.tree.flatten(args)
    pairs = [np.stack([x, x]) for x in leaves]
    cotangents = [np.stack([c, -c]) for c in given]

    def every(function: Op | Function) -> Function:
        one = call_of(function, sample)

        def of_leaves(*xs: Any) -> Any:
            return one(*jax.tree.unflatten(tree, xs))

        def scanned(*xs: Any) -> Any:
            return jax.lax.scan(lambda carry, row: (carry, of_leaves(*row)), (), xs)[1]

        def run(xs: Any, many: Any, c: Any, cs: Any) -> Any:
            return {
                "jvp": forward_derivative(of_leaves, xs),
                "remat": pullback(jax.checkpoint(of_leaves), xs)(xs, c),
                "scan": pullback(scanned, many)(many, cs),
                "vmap of grad": jax.vmap(pullback(of_leaves, xs))(many, cs),
                "grad of vmap": pullback(jax.vmap(of_leaves), many)(many, cs),
            }

        return run

    what = f"derivatives of {op.name} on {sample.name}"
    assert_agrees(what, every(op), every(op.definition), (leaves, pairs, given, cotangents), on)


def forward_derivative(fn: Function, xs: Sequence[Any]) -> Any:
    """Of the floating results, as the floating arguments grow by a half of themselves and a quarter."""
    floating = [i for i, x in enumerate(xs) if compat.is_inexact(x.dtype)]

    def of_floating(*chosen: Any) -> list[Any]:
        every = list(xs)
        for i, x in zip(floating, chosen, strict=True):
            every[i] = x
        return [y for y in jax.tree.leaves(fn(*every)) if compat.is_inexact(y.dtype)]

    chosen = [xs[i] for i in floating]
    return jax.jvp(of_floating, chosen, [(x * 0.5 + 0.25).astype(x.dtype) for x in chosen])[1] if chosen else []


def check_layouts(op: Op, sample: Sample, on: Sequence[Implementation]) -> None:
    """Arguments that do not lie row after row: views of the caller, and transposed ones inside the program."""
    leaves, tree = jax.tree.flatten(in_dtype(sample, np.float32))
    turned = [np.stack([x.T, x.T], axis=-1)[..., 0] for x in leaves]

    def of_turned(function: Op | Function) -> Function:
        return lambda *xs: call_of(function, sample)(*jax.tree.unflatten(tree, [x.T for x in xs]))

    what = f"{op.name} on transposed {sample.name}"
    assert_agrees(what, of_turned(op), of_turned(op.definition), turned, on)


def planted(op: Op, fault: Function) -> Op:
    """``op`` with a wrong definition, which gets every static argument; it is held against the right one."""

    def definition(*args: Any, **static: Any) -> Any:
        return fault(*args, **static)

    definition.__signature__ = op.signature  # type: ignore[attr-defined]
    wrong = Op(definition, op.shapes.text, f"{op.name}_{fault.__name__}")
    wrong.laws, wrong.samples = op.laws, op.samples
    return wrong


def fault_is_caught(op: Op, fault: Function, samples: Sequence[Sample], backend: str) -> bool:
    """Whether some sample, or else some law on it, shows that ``fault`` is wrong."""
    on, wrong = Implementation(backend, False), planted(op, fault)
    try:
        for sample in samples:
            expected = _expected(op, sample.name, np.dtype(np.float32))
            expected.hold(fault.__name__, call_of(wrong, sample), in_dtype(sample, np.float32), [on], hasty=True)
        for sample in samples:
            check_laws(wrong, sample, np.float32, on)
    except (Disagreement, AssertionError):
        return True
    return False


def what_ran(op: Op, samples: Sequence[Sample], backend: str, dtype: Any) -> Iterator[str]:
    """Which implementation runs each sample on ``backend``: a kernel's name, or ``definition``."""
    device = registry.get(backend).devices()[0].kind
    for sample in samples:
        call, leaves = op.bind(in_dtype(sample, dtype), sample.static)
        chosen = select(call, [compat.abstract(x) for x in leaves], backend, device).kernel
        yield chosen.name if chosen else "definition"
