"""``m2ml backends``, ``m2ml doctor`` and ``m2ml explain``: what runs here, and how."""

from __future__ import annotations

from typing import Annotated

import typer

from m2ml.cli.arguments import FunctionName, aval_of, calling, function_of
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
    function: FunctionName,
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
        found = function_of(function)
        jitted = found if isinstance(found, m2ml.Jitted) else m2ml.jit(found)
        avals = [aval_of(text) for text in arg or ()]
        with calling(function):
            explanation = jitted.on(backend or m2ml.current()).explain(*avals)
        typer.echo(explanation.text)
