"""``m2ml kernel check``: everything that can be said of a Metal kernel without a Mac."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    import numpy as np
    from m2ml_kernels.metal_host import Output

app = typer.Typer(help="Check kernels.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Check kernels."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The Metal source.", exists=True, dir_okay=False)],
    kernel: Annotated[str, typer.Option(help="The kernel function's name.")],
    grid: Annotated[str, typer.Option(help="Threads in all, such as 256,1,1.")],
    threadgroup: Annotated[str, typer.Option(help="Threads in a threadgroup, such as 64,1,1.")],
    buffer: Annotated[
        list[str],
        typer.Option(
            help="One buffer: x=float32[4,64] draws an input, n=uint32:64 is a value, y=out:float32[4,64] is written.",
            metavar="NAME=TYPE",
        ),
    ],
    template: Annotated[str, typer.Option(help="Template arguments, such as 'float, 4'.")] = "",
    include: Annotated[list[Path] | None, typer.Option(help="A folder of headers.")] = None,
    seconds: Annotated[float, typer.Option(help="Time limit of one launch.")] = 60.0,
) -> None:
    """Lint a Metal kernel and run it on the CPU: in three orders, under sanitizers, with every error Metal allows.

    What passes reads and writes only its own memory, needs no luck with the order of threads, and gives one answer.
    It says nothing of registers, occupancy, speed, the last bits of exp, or whether Apple's compiler accepts it.

    Example: m2ml kernel check scale.metal --kernel scale --grid 64,1,1 --threadgroup 32,1,1
    --buffer x=float32[64] --buffer y=out:float32[64]
    """
    from m2ml_kernels import KernelError
    from m2ml_kernels.metal_host import Source
    from m2ml_kernels.metal_host.check import Case
    from m2ml_kernels.metal_host.check import check as run_check
    from m2ml_kernels.metal_host.signature import find_kernel

    from m2ml.errors import M2mlError

    with plain_errors():
        try:
            source = Source.read(file, include or [])
            names = {
                name: index for index, name in find_kernel(source.text, kernel, source.file).buffer_names().items()
            }
            buffers = dict(_buffer(text, names, kernel) for text in buffer)
            case = Case(source, kernel, buffers, _three(grid), _three(threadgroup), template, seconds=seconds)
            report = run_check(case)
        except KernelError as error:
            raise M2mlError(str(error)) from error
    typer.echo(report.text)
    raise typer.Exit(0 if report.passed else 1)


def _three(text: str) -> tuple[int, ...]:
    from m2ml.errors import M2mlError

    if not re.fullmatch(r"\d+(,\d+){0,2}", text):
        raise M2mlError(f"sizes are written like 256,1,1; got {text}")
    return (*map(int, text.split(",")), 1, 1)[:3]


def _buffer(text: str, names: dict[str, int], kernel: str) -> tuple[int, np.ndarray | Output]:
    """``x=float32[4,64]``, ``n=uint32:64`` or ``y=out:float32[4,64]`` as the buffer's index and what it holds."""
    import numpy as np
    from m2ml_kernels.metal_host import Output

    from m2ml.errors import M2mlError

    found = re.fullmatch(r"(\w+)=(out:)?(\w+?)(?:\[([\d,]+)\]|:(-?[\d.e+-]+))", text)
    if not found:
        raise M2mlError(f"a buffer is written like x=float32[4,64], n=uint32:64 or y=out:float32[4,64]; got {text}")
    name, is_output, type_name, sizes, value = found.groups()
    if name not in names:
        raise M2mlError(f"{kernel} has no buffer {name}; its buffers: {', '.join(names)}")
    try:
        dtype = np.dtype(type_name)
    except TypeError as error:
        raise M2mlError(f"{type_name} is not a dtype of NumPy; got {text}") from error
    if value is not None:
        return names[name], np.array(float(value)).astype(dtype)
    shape = tuple(map(int, sizes.split(",")))
    if is_output:
        return names[name], Output(shape, dtype)
    draw = np.random.default_rng(names[name])
    drawn = draw.normal(size=shape) if dtype.kind == "f" else draw.integers(0, 100, shape)
    return names[name], drawn.astype(dtype)
