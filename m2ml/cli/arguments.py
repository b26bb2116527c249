"""What commands are told: functions as ``MODULE:FUNCTION``, arguments as types or files, options that they share."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

#: A command's function, and the arrays it is called with.
FunctionName = Annotated[
    str, typer.Argument(help="Module and function, such as mymodel:loss.", metavar="MODULE:FUNCTION")
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        help="One argument: a type such as float32[8,64], filled with random numbers; an .npy file; or the word"
        " key, a random key. Once for each, in order.",
        metavar="TYPE|FILE",
    ),
]


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` as typer reads it: a parameter that is a dataclass becomes an option for each of its fields."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        of_fields = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=of_fields[f.name])
            for f in dataclasses.fields(kind)
        ]

    def run(**given: Any) -> None:
        made = {n: kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)}) for n, kind in groups.items()}
        command(**made, **given)

    run.__doc__ = command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def function_of(name: str) -> Any:
    """The function that ``MODULE:FUNCTION`` names; the module is found as Python would find it from this folder."""
    from m2ml.errors import M2mlError

    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise M2mlError(f"a function is named as MODULE:FUNCTION; got {name}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise M2mlError(f"{name} was not found: {error}") from error
    return found


@contextlib.contextmanager
def calling(function: str) -> Iterator[None]:
    """What ``function`` raises because it does not take its arguments becomes one sentence."""
    from m2ml.errors import M2mlError

    try:
        yield
    except M2mlError:
        raise
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).partition("\n[NOTE]")[0].split())
        raise M2mlError(f"{function} does not take these arguments: {said}") from error


def aval_of(text: str) -> Any:
    """``float32[8,64]`` as a `jax.ShapeDtypeStruct`."""
    import jax
    import jax.numpy as jnp

    from m2ml.errors import M2mlError

    match = re.fullmatch(r"(\w+)(?:\[([\d, ]*)\])?", text.strip())
    try:
        assert match
        shape = tuple(int(size) for size in (match[2] or "").split(",") if size.strip())
        return jax.ShapeDtypeStruct(shape, jnp.dtype(match[1]))
    except (AssertionError, TypeError) as error:
        raise M2mlError(f"an argument's type is written like float32[8,64]; got {text}") from error


def arrays_of(texts: Sequence[str], seed: int) -> list[Any]:
    """Arguments from ``--arg``: what an ``.npy`` file holds, a random key for ``key``, random numbers of a type.

    Floating numbers are normal, integers between 0 and 7 (valid indices of most things), booleans even.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    return [_array_of(text.strip(), generator, seed) for text in texts]


def _array_of(text: str, generator: Any, seed: int) -> Any:
    import jax
    import numpy as np

    from m2ml.errors import M2mlError
    from m2ml.precision import is_complex, is_float

    if text == "key":
        return jax.random.key(seed)
    if text.endswith(".npy"):
        try:
            return np.load(text)
        except (OSError, ValueError) as error:
            raise M2mlError(f"the argument {text} cannot be read: {error}") from error
    aval = aval_of(text)
    if is_float(aval.dtype) or is_complex(aval.dtype):
        parts = generator.normal(size=(2, *aval.shape))
        return (parts[0] + 1j * parts[1] if is_complex(aval.dtype) else parts[0]).astype(aval.dtype)
    return generator.integers(0, 2 if aval.dtype == bool else 8, aval.shape).astype(aval.dtype)
