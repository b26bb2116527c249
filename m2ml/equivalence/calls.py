"""A call as `compare` takes it: traced, its inputs on the host, a name for each result; values alone or with gradients.

Gradients are those of one number: of the only floating result if that is a scalar, else of the sum of all floating
results, each times a cotangent drawn once from a fixed seed, so that every element of every result counts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from m2ml import compat, modules
from m2ml.equivalence.measure import canonical, output_paths, physical, program_leaves
from m2ml.errors import M2mlError, in_one_line
from m2ml.program import Program
from m2ml.staged import Staged

Array = np.ndarray[Any, Any]

#: What `compare` takes as ``grad``: whether, or with respect to which arguments by position or name.
Grad = bool | int | str | Sequence[int | str]

#: Per dynamic leaf of a call: the argument it belongs to, its position (None for one given by name), and its own name.
Names = list[tuple[str, int | None, str]]


@dataclass(frozen=True)
class Call:
    """A call ready to be compared: ``host`` are the inputs of ``program``; ``inputs`` and ``paths`` name its leaves."""

    program: Program
    host: list[Array]
    inputs: list[str]
    paths: list[str]


def call_of(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], grad: Grad = False) -> Call:
    """Trace a call of ``fn``. Whole Flax NNX modules become their state, which is also a result; they are not updated.

    Raises what tracing raises, with a note naming the call; `m2ml.M2mlError` when ``grad`` cannot be what is asked.
    """
    staged: Staged = getattr(fn, "staged", None) or Staged(fn)
    names, name_outputs = _argument_names(staged, args, kwargs), output_paths
    if modules.find((args, kwargs)):
        staged, args, kwargs, names = _without_modules(staged, args, kwargs)
        name_outputs = functools.partial(_paths_with_state, names, len(jax.tree.leaves(args[0])))
    try:
        program = staged.trace(args, kwargs)
    except Exception as error:
        error.add_note(f"m2ml.compare was tracing {staged.name}({_types(args, kwargs)})")
        raise
    leaves, paths = program_leaves(staged, args, kwargs), name_outputs(program)
    host, inputs = [canonical(physical(x)) for x in leaves], [label for _, _, label in names]
    if grad is False:
        return Call(program, host, inputs, paths)
    chosen, cotangents = _chosen(program, names, grad), _cotangents(program)
    joined = _with_gradients(staged, args, kwargs, leaves, [i for i, _ in chosen], cotangents)
    paths += [f"gradient of {label}" for _, label in chosen]
    return Call(joined, [*host, *cotangents], [*inputs, *("a cotangent" for _ in cotangents)], paths)


def _paths_with_state(names: Names, of_state: int, program: Program) -> list[str]:
    """Names of the results of a call with modules: their state afterwards, then what the function gives."""
    paths = output_paths(program)
    results = [path.removeprefix("[1]") for path in paths if path.startswith("[1]")]
    if len(paths) - len(results) != of_state:  # the call adds variables to a module
        return paths
    return [*(f"{label} afterwards" for _, _, label in names[:of_state]), *results]


def _types(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The types of a call's array leaves; of what is not an array the Python type."""

    def of(leaf: Any) -> str:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        return type(leaf).__name__ if shape is None else f"{dtype}[{','.join(map(str, shape))}]"

    leaves = jax.tree.leaves((args, dict(kwargs)))
    return ", ".join([of(leaf) for leaf in leaves[:8]] + [f"{len(leaves) - 8} more"] * (len(leaves) > 8))


# Names of arguments ----------------------------------------------------------------------------------


def _positional_name(staged: Staged, index: int) -> str:
    """The name of the parameter that positional argument ``index`` is bound to."""
    try:
        parameters = list(inspect.signature(staged.fn).parameters.values())
    except (TypeError, ValueError):  # a function of a C extension
        return f"args[{index}]"
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"{parameter.name}[{index - i}]"
        if i == index:
            return parameter.name
    return f"args[{index}]"


def _named_leaves(staged: Staged, marked: Any) -> list[tuple[Any, tuple[str, int | None, str]]]:
    """The dynamic leaves of a call, modules whole, each with its name."""
    found = [(leaf, path) for path, leaf in _leaves(marked) if not isinstance(leaf, modules.Static)]
    return [(leaf, _name(staged, path)) for leaf, path in found]


def _argument_names(staged: Staged, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Names:
    return [name for _, name in _named_leaves(staged, staged.mark_static(args, kwargs, modules.Static))]


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    def whole(x: Any) -> bool:
        return isinstance(x, modules.Static) or bool(modules.find(x) and modules.find(x)[0] is x)

    found: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(tree, is_leaf=whole)[0]
    return found


def _name(staged: Staged, path: Sequence[Any]) -> tuple[str, int | None, str]:
    by_name = path[0].idx == 1
    name = path[1].key if by_name else _positional_name(staged, path[1].idx)
    return name, None if by_name else path[1].idx, name + jax.tree_util.keystr(tuple(path[2:]))


def _without_modules(
    staged: Staged, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Staged, tuple[Any, ...], dict[str, Any], Names]:
    """The call as one of a pure function of the modules' state, as `m2ml.jit` makes it."""
    marked = staged.mark_static(args, kwargs, modules.Static)
    found = _named_leaves(staged, marked)
    seen: list[Any] = []

    def record(state: Any, rest: Any, *, structure: Any) -> tuple[Any, None]:
        seen.extend((state, rest, structure))
        return state, None

    modules.call(record, *marked)
    state, rest, structure = seen
    of_modules = [name for leaf, name in found if modules.find(leaf)]
    names: Names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]:
        name, position, label = of_modules[_key(path[0])]
        names.append((name, position, label + "".join(f".{_key(part)}" for part in path[1:] if _key(part) != "value")))
    names += [name for leaf, name in found if not modules.find(leaf)]
    donated = ("state",) if staged.donate else ()
    pure = Staged(modules.pure(staged.fn), ("structure",), donated, staged.strict, staged.debug, staged.kernels)
    return pure, (state, rest), {"structure": structure}, names


def _key(part: Any) -> Any:
    return next(getattr(part, field) for field in ("key", "idx", "name") if hasattr(part, field))


# Gradients -------------------------------------------------------------------------------------------


def _chosen(program: Program, names: Names, grad: Grad) -> list[tuple[int, str]]:
    """Numbers and names of the floating leaves that ``grad`` chooses."""
    wanted = None if grad is True else [grad] if isinstance(grad, int | str) else list(grad)
    floating = [(i, *names[i]) for i, aval in enumerate(program.jaxpr.in_avals) if compat.is_inexact(aval.dtype)]
    if wanted is None:
        if not floating:
            raise M2mlError(f"compare cannot differentiate {program.name}: no argument holds floating-point numbers")
        return [(i, label) for i, *_, label in floating]
    positions = [position for _, position, _ in names if position is not None]
    count, found = max(positions, default=-1) + 1, []
    for want in wanted:
        place = want + count if isinstance(want, int) and want < 0 else want
        of_argument = [(i, label) for i, name, position, label in floating if place in (name, position)]
        if not of_argument:
            known = any(place in (name, position) for name, position, _ in names)
            why = "it holds no floating-point numbers" if known else f"there is {', '.join(_distinct(names))}"
            raise M2mlError(f"compare cannot differentiate {program.name} with respect to argument {want!r}: {why}")
        found += of_argument
    return list(dict.fromkeys(found))


def _distinct(names: Names) -> list[str]:
    return list(dict.fromkeys(name for name, _, _ in names)) or ["none"]


def _cotangents(program: Program) -> list[Array]:
    """One per floating output: 1 for a single real scalar, else numbers between 1/2 and 1 of either sign."""
    avals = [a for a in program.jaxpr.out_avals if compat.is_inexact(a.dtype)]
    if not avals:
        raise M2mlError(f"compare cannot differentiate {program.name}: no result holds floating-point numbers")
    if len(avals) == 1 and not avals[0].shape:
        return [np.ones((), avals[0].dtype)]
    generator = np.random.default_rng(0)
    return [np.asarray(generator.uniform(0.5, 1, a.shape) * generator.choice([-1, 1], a.shape), a.dtype) for a in avals]


def _with_gradients(
    staged: Staged,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    leaves: Sequence[Any],
    wrt: Sequence[int],
    cotangents: Sequence[Array],
) -> Program:
    """Values and gradients as one program; its inputs are the leaves of the call and the cotangents."""
    fn = _on_leaves(staged, args, kwargs)

    def values_and_gradients(inputs: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def of(floating: Sequence[Any]) -> tuple[list[Any], Any]:
            moved = dict(zip(wrt, floating, strict=True))
            result = fn([moved.get(i, x) for i, x in enumerate(inputs)])
            return [y for y in jax.tree.leaves(result) if compat.is_inexact(y.dtype)], result

        _, pull, result = jax.vjp(of, [inputs[i] for i in wrt], has_aux=True)
        return result, pull(list(cotangents))[0]

    values_and_gradients.__name__ = staged.name
    joined = Staged(values_and_gradients, (), (), staged.strict, staged.debug, staged.kernels)
    try:
        return joined.trace((list(leaves), list(cotangents)), {})
    except Exception as error:
        said = in_one_line(error).split(". ")[0]
        raise M2mlError(f"compare cannot differentiate {staged.name}: {said}") from error


def _on_leaves(staged: Staged, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[Sequence[Any]], Any]:
    """The staged function on the dynamic leaves of a call, its static arguments filled in; scalars become arrays."""
    marked = staged.mark_static(args, kwargs, modules.Static)
    flat, tree = jax.tree.flatten(marked, is_leaf=lambda x: isinstance(x, modules.Static))

    def fn(leaves: Sequence[Any]) -> Any:
        dynamic = iter(leaves)
        filled = [x.value if isinstance(x, modules.Static) else next(dynamic) for x in flat]
        full_args, full_kwargs = jax.tree.unflatten(tree, filled)
        return jax.tree.map(jax.numpy.asarray, staged.fn(*full_args, **full_kwargs))

    return fn
