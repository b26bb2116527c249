"""Everything that differs between the JAX versions m2ml supports lives in this file.

Only public modules of JAX are read. Supported: jax 0.5.0 to 0.12. ``jax.extend`` is imported when it is first
needed: it pulls in Pallas, which costs as much as everything else ``import m2ml`` adds to ``import jax``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import site
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jax.extend import core

#: Old primitive name -> the name m2ml uses.
RENAMED: Mapping[str, str] = {
    "pjit": "jit",
    "remat": "checkpoint",
    "remat2": "checkpoint",
    "core_call": "call",
    "core_closed_call": "closed_call",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
    "random_gamma_p": "random_gamma",
    "copy_p": "copy",
    "scatter-add": "scatter_add",
    "scatter-mul": "scatter_mul",
    "scatter-sub": "scatter_sub",
    "scatter-min": "scatter_min",
    "scatter-max": "scatter_max",
}

#: Primitives that only call a jaxpr, the first one among their parameters.
CALLS = frozenset(
    """call checkpoint closed_call composite custom_jvp_call custom_partitioning custom_transpose_call
    custom_vjp_call custom_vmap_call eval_jaxpr jit linear_call remat_opt xla_metadata_call""".split()
)

#: Primitives whose outputs are their inputs once a program runs on one device.
IDENTITIES = frozenset(
    """copy create_linear dce_sink device_put inspect_sharding layout_constraint mesh_cast name pbroadcast pin pvary
    random_clone random_unwrap random_wrap reduced_vary_cast reduced_vary_cast_p relayout reshard sharding_cast
    sharding_constraint stage stop_gradient unpin vary_unreduced_cast vary_unreduced_cast_p
    with_memory_space_constraint""".split()
)


#: m2ml's own primitives, which carry a call of an op.
OPS = frozenset({"m2ml_op", "m2ml_tangent"})


def primitive_name(eqn: core.JaxprEqn) -> str:
    """The version-independent name of an equation's primitive."""
    return RENAMED.get(eqn.primitive.name, eqn.primitive.name)


def parameters(eqn: core.JaxprEqn) -> Mapping[str, Any]:
    """An equation's parameters as m2ml names them: jax 0.12 gives scan's counts as trees of what goes in."""
    if "ft_in" not in eqn.params:
        return eqn.params
    constants, carry, _ = (len(part) for part in eqn.params["ft_in"].unpack())
    renamed = {key: value for key, value in eqn.params.items() if not key.startswith("ft_")}
    return renamed | {"num_consts": constants, "num_carry": carry}


def called_jaxpr(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The jaxpr that a call-like equation runs, or None if the equation is not a call."""
    if primitive_name(eqn) == "call_hi_primitive":
        return _definition(eqn)
    if primitive_name(eqn) not in CALLS:
        return None
    return closed(next(value for value in eqn.params.values() if is_jaxpr(value)))


def _definition(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """What a primitive of jax 0.12 that is defined by other primitives (``jnp.searchsorted``) expands to."""
    primitive = eqn.params["_prim"]

    def expand(*leaves: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, leaves)))

    avals: list[Any] = [v.aval for v in eqn.invars]
    return jax.make_jaxpr(expand)(*(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals))


def foreign_definition(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """What a library's own primitive computes, where it is implemented in JAX; None for JAX's and m2ml's."""
    implementation: Any = eqn.primitive.impl
    home = getattr(getattr(implementation, "func", implementation), "__module__", "") or ""
    if home.partition(".")[0] in ("jax", "jaxlib", "m2ml"):
        return None

    def run(*args: Any) -> Any:
        found = implementation(*args, **eqn.params)
        return list(found) if eqn.primitive.multiple_results else [found]

    avals: list[Any] = [v.aval for v in eqn.invars]
    try:
        return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    except Exception:  # a stranger's code, which need not be written in JAX: the primitive stays what it is
        return None


def platform_index(eqn: core.JaxprEqn) -> np.ndarray[Any, Any]:
    """The branch of ``lax.platform_dependent`` that every engine but XLA takes: that for cpu, or else the default."""
    platforms = eqn.params["platforms"]
    named = [i for i, names in enumerate(platforms) if names is not None and "cpu" in names]
    default = len(platforms) if eqn.params.get("has_default") else len(platforms) - 1
    return np.asarray((named or [default])[0], np.int32)


def closed(jaxpr: Any) -> core.ClosedJaxpr:
    """``jaxpr`` as a ClosedJaxpr; an open one must have no constants."""
    from jax.extend import core

    return jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())


def is_jaxpr(value: Any) -> bool:
    from jax.extend import core

    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written into it."""
    from jax.extend import core

    return isinstance(atom, core.Literal)


def x64_enabled() -> bool:
    """Whether JAX's 64-bit types are on in this thread."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined] # made by JAX at run time


def jax_platforms() -> str:
    """The platforms that JAX starts, or has started, in its own words (``"mps,cpu"``); ``""`` for all there are."""
    return str(jax.config.jax_platforms or "")  # type: ignore[attr-defined] # made by JAX at run time


def set_jax_platforms(platforms: str) -> None:
    """Choose the platforms that JAX starts when it is first used; without effect on one that has started."""
    jax.config.update("jax_platforms", platforms or None)


def may_have_other_platforms() -> bool:
    """Whether a plugin of JAX is installed, so that arrays may live elsewhere than on its default device."""
    return importlib.util.find_spec("jax_plugins") is not None


def abstract(array: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array or a type of one: hashable, and equal for equal types."""
    return jax.ShapeDtypeStruct(tuple(array.shape), np.dtype(array.dtype))


def shaped_array(array: Any) -> Any:
    """``array``'s type as abstract evaluation gives it."""
    from jax.extend import core

    return (
        core.ShapedArray(tuple(array.shape), np.dtype(array.dtype))
        if hasattr(core, "ShapedArray")
        else (jax.core.ShapedArray(tuple(array.shape), np.dtype(array.dtype)))
    )


def zero_tangent(primal: Any) -> Any:
    """The tangent of integers and booleans, which do not change."""
    from jax.interpreters import ad

    zero: Any = ad.Zero
    return zero(shaped_array(jax.ShapeDtypeStruct(tuple(primal.shape), jax.dtypes.float0)))


def enable_x64() -> Any:
    """A context in which JAX's 64-bit types are on."""
    import jax.experimental

    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return where.enable_x64(True)


def is_inexact(dtype: Any) -> bool:
    """Whether ``dtype`` is floating or complex, those of ml_dtypes included."""
    return bool(jnp.issubdtype(dtype, np.inexact))


# Source lines -------------------------------------------------------------------------------------


def _plugin_folders() -> Iterable[str]:
    """Of the packages that installed plugins come from: one that is installed as editable lies with the user's code."""
    for entry in importlib.metadata.entry_points(group="m2ml"):
        with contextlib.suppress(ImportError, ValueError):  # a plugin that cannot be found has no frames
            found = importlib.util.find_spec(entry.module.partition(".")[0])
            yield from (found and found.submodule_search_locations) or ()


@functools.cache
def _library_folders() -> tuple[str, ...]:
    folders = {
        *site.getsitepackages(),
        site.getusersitepackages(),
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
        *_plugin_folders(),
    }
    return tuple(f"{Path(folder).resolve()}{os.sep}" for folder in (*folders, str(Path(__file__).parent)) if folder)


@functools.cache
def _is_users(file_name: str) -> bool:
    return not file_name.startswith("<") and not str(Path(file_name).resolve()).startswith(_library_folders())


def source_line(eqn: core.JaxprEqn) -> str:
    """``file.py:12 (function)`` of the innermost frame that is the user's own code, or ``""``."""
    traceback = getattr(eqn.source_info, "traceback", None)
    for frame in traceback.frames if traceback is not None else ():
        if _is_users(frame.file_name):
            line = getattr(frame, "line_num", None) or getattr(frame, "start_line", 0)
            return f"{frame.file_name}:{line} ({frame.function_name})"
    return ""


# Random keys: typed key arrays are uint32 arrays with extra trailing axes ---------------------------


@functools.cache
def _key_impls() -> Mapping[str, Any]:
    from jax.extend import random

    impls = (random.threefry_prng_impl, random.rbg_prng_impl, random.unsafe_rbg_prng_impl)
    return {impl.tag: impl for impl in impls}


def is_key(dtype: Any) -> bool:
    """Whether ``dtype`` is a typed random key (``jax.random.key``)."""
    return bool(jnp.issubdtype(dtype, jax.dtypes.extended))


def key_impl(dtype: Any) -> Any:
    """The public PRNGImpl of a key dtype (its name is ``key<tag>``)."""
    return _key_impls()[str(dtype.name).removeprefix("key<").removesuffix(">")]


def key_impl_name(dtype: Any) -> str:
    """The name ``jax.random.wrap_key_data`` knows the implementation of ``dtype`` by."""
    return str(key_impl(dtype).name)


def physical_aval(aval: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the array that really holds ``aval``: for keys, uint32 with trailing axes.

    Tangents of integers (``float0``) hold nothing; as XLA does, booleans stand in for them.
    """
    if is_key(aval.dtype):
        return jax.ShapeDtypeStruct((*aval.shape, *key_impl(aval.dtype).key_shape), np.uint32)
    if aval.dtype == jax.dtypes.float0:
        return jax.ShapeDtypeStruct(aval.shape, np.bool_)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def on_physical_arrays(jaxpr: core.ClosedJaxpr) -> Callable[..., list[Any]]:
    """``jaxpr`` as a function in which typed keys are the uint32 arrays that hold them, as executables take them."""
    from jax.extend import core

    fn = core.jaxpr_as_fun(jaxpr)

    def run(*args: Any) -> list[Any]:
        typed = [
            jax.random.wrap_key_data(x, impl=key_impl_name(aval.dtype)) if is_key(aval.dtype) else x
            for x, aval in zip(args, jaxpr.in_avals, strict=True)
        ]
        return [jax.random.key_data(y) if is_key(y.dtype) else y for y in fn(*typed)]

    return run


def _mapped(fn: Callable[..., Any], times: int) -> Callable[..., Any]:
    for _ in range(times):
        fn = jax.vmap(fn)
    return fn


def _random_function(name: str, eqn: core.JaxprEqn) -> Callable[..., Any] | None:
    operand: Any = eqn.invars[0].aval
    params, ndim = eqn.params, len(operand.shape)
    if name == "random_seed":
        return _mapped(params["impl"].seed, ndim)
    if name not in ("random_split", "random_fold_in", "random_bits"):
        return None
    impl = key_impl(operand.dtype)
    if name == "random_split":
        return _mapped(lambda key: impl.split(key, params["shape"]), ndim)
    if name == "random_fold_in":
        return _mapped(impl.fold_in, ndim)
    return _mapped(lambda key: impl.random_bits(key, params["bit_width"], params["shape"]), ndim)


def physical_equation(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """An equation on typed keys as a jaxpr on the uint32 arrays that hold them.

    Random primitives are expanded to their public definition. A primitive that only moves data acts on
    each trailing component alike, so it is the primitive mapped over the trailing axes. Returns None for
    an equation that needs no change.
    """
    name = primitive_name(eqn)
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    if name in ("scan", "while", "cond", "random_gamma") or not any(is_key(a.dtype) for a in avals):
        return None
    fn = _random_function(name, eqn)
    if fn is None:
        key_axes = len(key_impl(next(a.dtype for a in avals if is_key(a.dtype))).key_shape)

        def fn(*args: Any) -> Any:
            return eqn.primitive.bind(*args, **eqn.params)

        for _ in range(key_axes):
            fn = jax.vmap(fn, in_axes=[-1 if is_key(a.dtype) else None for a in avals[: len(eqn.invars)]], out_axes=-1)
    return jax.make_jaxpr(fn)(*(physical_aval(v.aval) for v in eqn.invars))


def unbatched_while(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """A loop that vmap gave a predicate per element, as one that runs while any is true; None for any other equation.

    An element whose predicate is false keeps its carry, as XLA's lowering has it.
    """
    from jax.extend import core

    params = eqn.params
    if primitive_name(eqn) != "while" or not params["cond_jaxpr"].out_avals[0].shape:
        return None
    condition, body = core.jaxpr_as_fun(params["cond_jaxpr"]), core.jaxpr_as_fun(params["body_jaxpr"])
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

    def loop(*args: Any) -> list[Any]:
        def predicate(carry: Iterable[Any]) -> Any:
            return condition(*args[:first], *carry)[0]

        def step(carry: Iterable[Any]) -> list[Any]:
            going = predicate(carry)
            moved = body(*args[first:last], *carry)
            axes = tuple(range(going.ndim))
            return [
                jax.lax.select(jax.lax.broadcast_in_dim(going, new.shape, axes), new, old)
                for new, old in zip(moved, carry, strict=True)
            ]

        return list(jax.lax.while_loop(lambda carry: jnp.any(predicate(carry)), step, list(args[last:])))

    avals: list[Any] = [v.aval for v in eqn.invars]
    return jax.make_jaxpr(loop)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))


def linear_solve_jaxpr(eqn: core.JaxprEqn) -> tuple[core.ClosedJaxpr, list[Any]]:
    """The ``solve`` function of a custom_linear_solve equation and the operands it takes."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    begin = lengths.matvec + lengths.vecmat
    total = sum(lengths)
    operands = [*eqn.invars[begin : begin + lengths.solve], *eqn.invars[total:]]
    return closed(jaxprs.solve), operands


def trace(
    jitted: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[core.ClosedJaxpr, Any, tuple[bool, ...]]:
    """Trace a ``jax.jit`` function without starting a JAX backend: (jaxpr, output tree, donated inputs)."""
    traced = jitted.trace(*args, **kwargs)
    donated = tuple(bool(leaf.donated) for leaf in jax.tree.leaves(traced.args_info))
    return traced.jaxpr, jax.tree.structure(traced.out_info), donated
