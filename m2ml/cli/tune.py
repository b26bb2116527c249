"""``m2ml tune``: measure which kernels of a function's ops are fastest here, and remember it."""

from __future__ import annotations

from typing import Annotated

import typer

from m2ml.cli.arguments import Arguments, FunctionName, arrays_of, calling, function_of
from m2ml.cli.console import plain_errors


def command(
    function: FunctionName,
    arg: Arguments = None,
    backend: Annotated[str | None, typer.Option(help="Backend to tune; the default one if not given.")] = None,
    grad: Annotated[bool, typer.Option("--grad", help="Tune what its gradient calls, too.")] = False,
    seconds: Annotated[float, typer.Option(help="Time each implementation of a call for about this long.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the random arguments.")] = 0,
) -> None:
    """Time every kernel, and the definition, of the ops that a function calls; remember the fastest of each.

    Later runs use it for calls of the same shapes, dtypes and static arguments on this machine; m2ml explain shows the
    times. Tuning again measures again; a kernel that changed is not judged by what the old one measured.

    Example: m2ml tune m2ml.ops:rms_norm --arg float32[4096,512] --arg float32[512] --grad
    """
    import m2ml

    with plain_errors():
        fn, args = function_of(function), arrays_of(arg or (), seed)
        with calling(function):
            report = m2ml.tune(fn, *args, backend=backend, grad=grad, seconds=seconds)
        typer.echo(report.text)
