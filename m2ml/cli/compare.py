"""``m2ml compare``: run a function on every backend and hold each against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from m2ml.cli.arguments import Arguments, FunctionName, arrays_of, calling, function_of
from m2ml.cli.console import make_console, plain_errors

#: Exit code when a backend disagrees or fails.
DISAGREES = 1


def command(
    function: FunctionName,
    arg: Arguments = None,
    backend: Annotated[list[str] | None, typer.Option(help="A backend to compare; all of them if not given.")] = None,
    grad: Annotated[bool, typer.Option("--grad", help="Compare gradients with respect to the arguments, too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random arguments.")] = 0,
    isolated: Annotated[
        bool, typer.Option("--isolated", help="Run each backend in a process of its own, so that one may die.")
    ] = False,
    time_limit: Annotated[float, typer.Option(help="Most seconds of an isolated backend.")] = 600.0,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file as JSON.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of where the differences sit to this file.")
    ] = None,
) -> None:
    """Run a function on every backend and compare values and gradients with the float64 reference.

    The exit code is 1 when a backend disagrees or fails, 2 when there is nothing to compare.

    Example: m2ml compare jax.nn:softmax --arg float32[8,128] --grad
    """
    with plain_errors():
        report = _compare(function, arrays_of(arg or (), seed), backend, grad, time_limit if isolated else False)
        make_console().print(str(report), soft_wrap=True)
        if json:
            _write(json, lambda: json.write_text(report.json() + "\n"))
        if picture:
            _write(picture, lambda: report.picture(picture))
    if not report.ok:
        raise typer.Exit(DISAGREES)


def _compare(function: str, args: list[Any], backends: list[str] | None, grad: bool, isolated: bool | float) -> Any:
    import m2ml

    fn = function_of(function)
    with calling(function):
        return m2ml.compare(fn, *args, backends=backends, grad=grad, isolated=isolated)


def _write(path: Path, write: Any) -> None:
    from m2ml.errors import M2mlError

    try:
        write()
    except (OSError, ValueError) as error:  # Matplotlib raises ValueError for a suffix it does not know
        raise M2mlError(f"{path} cannot be written: {error}") from error
