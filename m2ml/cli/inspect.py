"""``m2ml backends``, ``m2ml doctor`` and ``m2ml explain``: what runs here, and how."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from m2ml.cli.console import make_console, plain_errors


def backends() -> None:
    """List the backends that are installed: the devices of those that run here, the reason for those that do not."""
    from rich.table import Table

    import m2ml

    with plain_errors():
        found = m2ml.doctor()
    table = Table("backend", "runs here", "devices, or why not")
    for name, devices in found.working.items():
        table.add_row(f"{name} (default)" if name == found.default else name, "yes", "\n".join(devices))
    for name, reason in found.failing.items():
        table.add_row(name, "no", reason)
    make_console().print(table)


def doctor() -> None:
    """Say what this machine has: versions, devices of every backend, and what is missing and how to get it."""
    import m2ml

    with plain_errors():
        typer.echo(m2ml.doctor().text)


def explain(
    function: Annotated[
        str, typer.Argument(help="Module and function, such as mymodel:loss.", metavar="MODULE:FUNCTION")
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option(help="Type of one argument, such as float32[8,64]; once for each, in order.", metavar="TYPE"),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Backend to explain for; the default one if not given.")] = None,
) -> None:
    """Say how a function would run: device, primitives, flops and bytes, and what would run elsewhere and why.

    Nothing is computed. The module is found as Python would find it from the current folder.

    Example: m2ml explain jax.nn:softmax --arg float32[8,128] --backend mlx
    """
    import m2ml

    with plain_errors():
        found = _function(function)
        jitted = found if isinstance(found, m2ml.Jitted) else m2ml.jit(found)
        typer.echo(jitted.on(backend or m2ml.current()).explain(*map(_aval, arg or ())).text)


def _function(name: str) -> Any:
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


def _aval(text: str) -> Any:
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
