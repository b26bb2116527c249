"""How often are the bounds of programs wrong? False alarms, and wrong lowerings that stay inside, with 95% limits.

    python benchmarks/study_bounds.py [--programs 1000] [--faults 300] [--seed 0] [--backends cpu mlx] [--seconds 500]
        [--save FOLDER]

The corpus: every generated primitive case, alone and composed with others (`COMPOSITIONS`) but for factorisations that
are unique up to signs only, random programs of primitives and two ops, and steps of every Optax optimizer named in
`OPTIMIZERS`. A false alarm is a correct engine outside its bound (a bug that is found counts as one until it is fixed);
``--save`` writes each as a file that shows it again. A miss is a planted fault that changes what a program gives and is
inside its bound.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress
from scipy.stats import binomtest

from m2ml.equivalence.bisect import first_disagreement
from m2ml.equivalence.findings import Finding
from m2ml.equivalence.fuzz import save
from m2ml.equivalence.measure import SECOND_LOOK, judge_all, measured_bounds
from m2ml.equivalence.mutants import planted
from m2ml.equivalence.mutants.faults import faults_of
from m2ml.equivalence.mutants.verdicts import collect, generated, neighbours
from m2ml.equivalence.primitives.cases import examples, load
from m2ml.equivalence.programs import drawable, drawable_ops, programs
from m2ml.equivalence.properties import PROPERTIES
from m2ml.equivalence.reproduce import source_of, with_ops
from m2ml.errors import M2mlError
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
Sample = tuple[str, Program, list[Array]]

#: Programs that a planted fault may show itself in.
CHANCES = 12

#: What may become of a fault in a program; of one in several programs the first of these. Bounds of programs do not
#: tell -0 from 0, so that a fault which changes nothing else is counted apart.
FATES = ("caught", "missed", "signs of zeros", "same")


def _floats(tree: Any, change: Callable[[Any], Any]) -> Any:
    return jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _gradient(function: Function) -> Function:
    def total(floats: Sequence[Any], arrays: Sequence[Any]) -> Any:
        given = iter(floats)
        outs = function(*(next(given) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays))
        weighed = [jnp.sum(y.astype(jnp.float32) * 0.5) for y in jax.tree.leaves(outs) if y.dtype.kind not in "biuc"]
        return sum(weighed, jnp.float32(0))

    def run(*arrays: Any) -> Any:
        return jax.grad(total)([x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)], arrays)

    return run


COMPOSITIONS: dict[str, Callable[[Function], Function]] = {
    "alone": lambda f: f,
    "of scaled arguments": lambda f: lambda *xs: f(*_floats(list(xs), lambda x: x * 0.75)),
    "squashed": lambda f: lambda *xs: _floats(f(*xs), lambda y: jnp.tanh(y * 0.5) + y),
    "added up": lambda f: lambda *xs: _floats(f(*xs), lambda y: jnp.sum(y * y)),
    "twice": lambda f: lambda *xs: [f(*xs), f(*_floats(list(xs), lambda x: x * 0.5))],
    "mapped": lambda f: lambda *xs: jax.vmap(f)(*(jnp.stack([x, x]) for x in xs)) if xs else f(),
    "gradient": _gradient,
    "centred": lambda f: lambda *xs: _floats(f(*xs), lambda y: y - jnp.mean(y)),
}

OPTIMIZERS = ("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "lamb", "lion", "sgd", "yogi")


def sampled(name: str, fn: Function, arrays: Sequence[Array]) -> Sample | None:
    """The traced program; None where the composition is not defined for this function."""
    try:
        return name, Staged(fn).trace(tuple(arrays), {}), [np.asarray(x) for x in arrays]
    except Exception:  # vmap or grad of what has none, in whatever way JAX says so
        return None


def corpus(names: Sequence[str], count: int, seed: int) -> Iterator[Sample]:
    """``count`` programs: the optimizers, then compositions and random programs in turn."""
    turns = itertools.chain.from_iterable(zip(composed(names, seed), drawn(names, seed), strict=False))
    yield from itertools.islice(itertools.chain(optimizers(seed), turns), count)


def composed(names: Sequence[str], seed: int) -> Iterator[Sample]:
    forms = itertools.cycle(COMPOSITIONS.items())
    for number in itertools.count(seed):
        for name in (name for name in names if name in load() and name not in PROPERTIES):
            for function, arrays in generated(name, seed=number, count=4)[1:]:
                kind, compose = next(forms)
                sample = sampled(f"{name} {kind}", compose(function), arrays)
                if sample:
                    yield sample


def drawn(names: Sequence[str], seed: int) -> Iterator[Sample]:
    rng = random.Random(seed)
    for number in itertools.count(seed):
        found: list[Any] = []
        some = [*rng.sample(list(names), 12), *rng.sample(drawable_ops(), 2)]
        examples(lambda draw, some=some, found=found: found.append(draw(programs(some))), 10, seed=number)
        for program in found:
            sample = sampled(f"random: {program}", program, program.arrays)
            if sample:
                yield sample


def optimizers(seed: int) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    weights = {"w": rng.uniform(-1, 1, (4, 3)).astype(np.float32), "b": rng.uniform(-1, 1, 3).astype(np.float32)}
    leaves, tree = jax.tree.flatten(weights)
    for name in OPTIMIZERS:
        optimizer = getattr(optax, name)(0.01)

        def train(*leaves: Any, optimizer: Any = optimizer) -> Any:
            params = jax.tree.unflatten(tree, leaves)
            state = optimizer.init(params)
            for _ in range(3):
                gradients = jax.grad(lambda p: jnp.sum((jnp.sin(p["w"]) @ p["b"] - 0.3) ** 2))(params)
                updates, state = optimizer.update(gradients, state, params)
                params = optax.apply_updates(params, updates)
            return params

        sample = sampled(f"optax.{name}", train, leaves)
        assert sample is not None
        yield sample


# false alarms ---------------------------------------------------------------------------------------


def outputs(backend: Any, program: Program, host: Sequence[Array]) -> list[Array] | str:
    """What a backend gives, or why it gives nothing."""
    try:
        return [backend.to_host(x) for x in backend.compile(program)(*map(backend.from_host, host))]
    except (M2mlError, RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def worst(program: Program, host: Sequence[Array], outs: list[Array] | str, bounds: Sequence[Any]) -> float:
    """The largest distance in units of the bound; infinite for an error. Above 1 the spread of more runs decides."""
    report = judge_all(program, {"": outs}, bounds).backends[0]
    if not report.ok:
        report = judge_all(program, {"": outs}, measured_bounds(program, host, runs=SECOND_LOOK)).backends[0]
    return float("inf") if report.error else max((out.worst for out in report.outputs), default=0.0)


def false_alarms(
    samples: Iterator[Sample],
    names: Sequence[str],
    count: int,
    seconds: float,
    progress: Progress,
    folder: Path | None = None,
) -> None:
    backends = {name: registry.get(name) for name in names}
    runs, alarms, shares = Counter[str](), Counter[str](), {name: [] for name in names}  # type: ignore[var-annotated]
    end = time.monotonic() + seconds
    task = progress.add_task("correct engines", total=count)
    for number, (what, program, host) in enumerate(samples):
        bounds = measured_bounds(program, host)
        for name, backend in backends.items():
            outs = outputs(backend, program, host)
            share = worst(program, host, outs, bounds)
            runs[name] += 1
            shares[name].append(share)
            if share > 1:
                alarms[name] += 1
                said = outs if isinstance(outs, str) else f"{share:.3g} of the bound"
                told = f"{name}, program {number}: {said}: {what[:160]}"
                progress.console.print(told, highlight=False, markup=False)
                if folder is not None:
                    save(Finding(f"{number} {name}", "alarm", told, written(name, program, host, told)), folder)
        if number % 50 == 0:
            jax.clear_caches()
        if number % 500 == 499:
            progress.console.print(f"{number + 1:,} programs: {dict(alarms) or 'no'} alarms", highlight=False)
        progress.advance(task)
        if time.monotonic() > end:
            break
    for name in names:
        level = ", ".join(f"{q:.1%}: {np.quantile(shares[name], q, method='lower'):.2f}" for q in (0.5, 0.99, 0.999))
        progress.console.print(f"{name}: {rate(alarms[name], runs[name])} false alarms; shares of the bound at {level}")


def written(name: str, program: Program, host: Sequence[Array], told: str) -> str:
    """The alarm as a file that shows it again, with the equation that it begins at; what was told of it at worst."""
    try:
        told = f"{told}\n\n{first_disagreement(program, host, name)}"
        return source_of(with_ops(program), host, name, told)
    except Exception as error:  # the study goes on, whatever is wrong with writing one program
        return f"# {told}\n# not written: {type(error).__name__}: {error}\n"


# misses ---------------------------------------------------------------------------------------------


def misses(backend: Any, names: Sequence[str], count: int, seed: int, progress: Progress) -> None:
    """Plant ``count`` faults, spread over the rules, and run up to `CHANCES` programs that hold the primitive."""
    task = progress.add_task("wrong lowerings", total=count)
    each, met, fated = -(-count // len(names)), Counter[str](), Counter[str]()
    for name in random.Random(seed).sample(list(names), len(names)):
        trials = collect(backend, name, seed=seed, count=10)
        if not trials:
            continue
        samples = list(itertools.islice(holding(name, seed), CHANCES))
        known = [(p, h, measured_bounds(p, h), outputs(backend, p, h)) for _, p, h in samples]
        faults = faults_of([t.equation for t in trials], neighbours(name, trials))
        for fault in random.Random(f"{seed} {name}").sample(faults, min(each, len(faults))):
            wrong = type(backend)(rules=planted(backend, name, fault))
            fates = [fate_of(wrong, *sample) for sample in known]
            fated.update(fates)
            best_fate = next(f for f in FATES if f in fates)
            met[best_fate] += 1
            if best_fate in ("missed", "signs of zeros"):
                progress.console.print(f"{best_fate}: {name}: {fault.label}", highlight=False, markup=False)
            progress.advance(task)
            if met.total() - met["same"] >= count:
                break
        jax.clear_caches()
    for what, fate in ((f"faults, in up to {CHANCES} programs each", met), ("programs that a fault changes", fated)):
        share = rate(fate["caught"], fate["caught"] + fate["missed"])
        zeros = f"{fate['signs of zeros']:,} more change signs of zeros only"
        progress.console.print(f"{what}: {share} caught; {zeros}", highlight=False)


def holding(name: str, seed: int) -> Iterator[Sample]:
    for sample in composed([name], seed + 1000):
        if name in sample[1].primitives:
            yield sample


def fate_of(wrong: Any, program: Program, host: list[Array], bounds: Sequence[Any], right: Any) -> str:
    got = outputs(wrong, program, host)
    if isinstance(right, str) or isinstance(got, str):
        return "same" if isinstance(right, str) else "caught"
    if all(y.tobytes() == r.tobytes() for y, r in zip(got, right, strict=True)):
        return "same"
    if worst(program, host, got, bounds) > 1:
        return "caught"
    return "signs of zeros" if all(map(_equal, got, right)) else "missed"


def _equal(x: Array, y: Array) -> bool:
    return bool(np.all((x == y) | ((x != x) & (y != y))))


def rate(found: int, of: int) -> str:
    """``3 of 1,000, 0.30% (0.06% to 0.87%)``: Clopper and Pearson's 95% limits."""
    low, high = binomtest(found, of).proportion_ci(method="exact") if of else (0.0, 1.0)
    return f"{found:,} of {of:,}, {found / max(of, 1):.2%} ({low:.3%} to {high:.2%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop looking for false alarms after these")
    parser.add_argument("--save", type=Path, help="write each false alarm to a file in this folder")
    parser.add_argument("--backends", nargs="+", default=["cpu", "mlx"])
    options = parser.parse_args()
    hypothesis.settings.register_profile("study", deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile("study")
    warnings.simplefilter("ignore")
    table: Any = registry.get("mlx" if "mlx" in options.backends else options.backends[-1])
    with Progress(console=Console(width=140)) as progress:
        if options.programs:
            samples = corpus(drawable(), options.programs, options.seed)
            false_alarms(samples, options.backends, options.programs, options.seconds, progress, options.save)
        if options.faults:
            ruled = [name for name in drawable() if name in table.rules and name not in PROPERTIES]
            misses(table, ruled, options.faults, options.seed, progress)
    return 0


if __name__ == "__main__":
    sys.exit(main())
