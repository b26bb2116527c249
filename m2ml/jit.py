"""`jit`: like ``jax.jit``, but the engine is a choice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

import jax

from m2ml import arrays, modules, selection
from m2ml.cost import Cost
from m2ml.dispatch import Dispatch
from m2ml.explain import Explanation, explain
from m2ml.plugins import registry
from m2ml.program import Program
from m2ml.staged import Staged

P = ParamSpec("P")
R = TypeVar("R")


@overload
def jit(
    fn: Callable[P, R],
    /,
    *,
    backend: str | None = None,
    static_argnames: str | Iterable[str] = (),
    donate_argnames: str | Iterable[str] = (),
    strict: bool = False,
    debug: bool = False,
    kernels: bool = True,
) -> Jitted[P, R]: ...
@overload
def jit(
    fn: None = None,
    /,
    *,
    backend: str | None = None,
    static_argnames: str | Iterable[str] = (),
    donate_argnames: str | Iterable[str] = (),
    strict: bool = False,
    debug: bool = False,
    kernels: bool = True,
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...
def jit(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    backend: str | None = None,
    static_argnames: str | Iterable[str] = (),
    donate_argnames: str | Iterable[str] = (),
    strict: bool = False,
    debug: bool = False,
    kernels: bool = True,
) -> Any:
    """Compile ``fn`` for whichever backend it is called on.

    Works like ``jax.jit``: ``fn`` is traced once per combination of argument trees, shapes, dtypes and static
    values, and ``jax.grad``, ``jax.vmap``, ``lax.scan``, Flax and Optax work inside and around it. Leaves may be
    NumPy, JAX or any backend's own arrays; results are the backend's own arrays.

    Args:
      backend: run on this backend always. Without it, the `m2ml.use` block, the default set by `m2ml.use`, the
        environment variable ``M2ML_BACKEND``, and ``"cpu"`` are asked in turn. ``"auto"`` measures and remembers.
      static_argnames: arguments that are constants of the program; they must be hashable.
      donate_argnames: arguments whose buffers the engine may reuse; do not use them after the call.
      strict: raise where a backend would run an equation elsewhere, instead of warning.
      debug: run one equation at a time and raise `m2ml.NotANumber` at the first that makes a NaN.
      kernels: False runs the definition of every op of `m2ml.ops`, even where a kernel could.

    >>> import m2ml, jax.numpy as jnp
    >>> @m2ml.jit
    ... def norm(x):
    ...     return jnp.sqrt(jnp.sum(x * x))
    >>> float(norm.on("reference")(jnp.array([3.0, 4.0])))
    5.0
    """
    if fn is None:
        return functools.partial(
            jit,
            backend=backend,
            static_argnames=static_argnames,
            donate_argnames=donate_argnames,
            strict=strict,
            debug=debug,
            kernels=kernels,
        )
    if not callable(fn):
        raise TypeError(f"m2ml.jit takes a function; got {type(fn).__name__}")
    if backend is not None:
        selection.check_name(backend)
    return Jitted(Staged(fn, _names(static_argnames), _names(donate_argnames), strict, debug, kernels), backend)


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _caller(staged: Staged, name: str) -> Callable[..., Any]:
    """The function that runs calls of ``staged`` on backend ``name``, made once."""
    if name not in staged.callers:
        staged.callers[name] = _make_caller(staged, name)
    return staged.callers[name]


def _make_caller(staged: Staged, name: str) -> Callable[..., Any]:
    if name == "auto":
        from m2ml.auto import Auto  # it brings the comparison with the reference

        return Auto(staged, functools.partial(_caller, staged))
    backend = registry.get(name)
    native = getattr(backend, "jit", None)
    return native(staged.jax_jit) if native and not staged.debug else Dispatch(staged, backend)


class Jitted(Generic[P, R]):
    """A function made by `jit`. Call it, or bind it to a backend with `on`."""

    def __init__(self, staged: Staged, backend: str | None) -> None:
        self.staged = staged
        self._backend = backend
        self._callers = staged.callers
        functools.update_wrapper(self, staged.fn, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        name = self._backend or selection.current()
        try:
            return self._callers[name](*args, **kwargs)
        except KeyError:
            if name in self._callers:
                raise
        except modules.HasModules:
            return self._call_with_modules(args, kwargs)
        except TypeError:
            retry = self._retry(args, kwargs)
            if retry is None:
                raise
            return retry(name)
        _caller(self.staged, name)
        return self(*args, **kwargs)

    def _retry(self, args: Any, kwargs: Any) -> Callable[[str], Any] | None:
        """How to repeat a call that JAX refused because of a leaf only we know, or None."""
        if modules.find((args, kwargs)):
            return lambda name: self._call_with_modules(args, kwargs)
        if any(map(arrays.is_foreign, jax.tree.leaves((args, kwargs)))):
            moved_args, moved_kwargs = jax.tree.map(
                lambda x: arrays.to_host(x) if arrays.is_foreign(x) else x, (args, kwargs)
            )
            return lambda name: self._callers[name](*moved_args, **moved_kwargs)
        return None

    def _call_with_modules(self, args: Any, kwargs: Any) -> Any:
        return modules.call(self._pure(), *self.staged.mark_static(args, kwargs, modules.Static))

    @functools.cached_property
    def _pure_staged(self) -> Staged:
        s = self.staged
        return Staged(modules.pure(s.fn), ("structure",), ("state",) if s.donate else (), s.strict, s.debug, s.kernels)

    def _pure(self) -> Jitted[..., Any]:
        return Jitted(self._pure_staged, self._backend)

    def on(self, name: str) -> Jitted[P, R]:
        """The same function on backend ``name``; what is compiled is shared with every other binding."""
        bindings = self.staged.bindings
        if name not in bindings:
            bindings[name] = Jitted(self.staged, selection.check_name(name))
        return cast(Jitted[P, R], bindings[name])

    def program(self, *args: P.args, **kwargs: P.kwargs) -> Program:
        """The `Program` of a call with these arguments (arrays, or ``jax.ShapeDtypeStruct`` in their place)."""
        return self.staged.trace(args, kwargs)

    def cost(self, *args: P.args, **kwargs: P.kwargs) -> Cost:
        """Floating-point operations, bytes that must move, and the peak of live bytes of such a call."""
        return self.program(*args, **kwargs).cost

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """How such a call runs: backend, device, segments, equations that run elsewhere, and why."""
        return explain(self.staged, self._backend or selection.current(), args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)
