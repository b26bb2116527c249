"""``m2ml kernel``: check kernels without a Mac, count what they cost, and begin a new one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import plain_errors

if TYPE_CHECKING:
    import numpy as np
    from m2ml_kernels.metal_host import Output
    from m2ml_kernels.metal_host.check import Report

app = typer.Typer(help="Check kernels, count their costs, begin a new one.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Check kernels, count their costs, begin a new one."""


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A Metal source, or the name of an op with kernels.", metavar="TARGET")],
    kernel: Annotated[str, typer.Option(help="Of a file: the kernel function's name.")] = "",
    grid: Annotated[str, typer.Option(help="Of a file: threads in all, such as 256,1,1.")] = "",
    threadgroup: Annotated[str, typer.Option(help="Of a file: threads in a threadgroup, such as 64,1,1.")] = "",
    buffer: Annotated[
        list[str] | None,
        typer.Option(
            help="One buffer: x=float32[4,64] draws an input, n=uint32:64 is a value, y=out:float32[4,64] is written.",
            metavar="NAME=TYPE",
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="Template arguments, such as 'float, 4'.")] = "",
    include: Annotated[list[Path] | None, typer.Option(help="A folder of headers.")] = None,
    seconds: Annotated[float, typer.Option(help="Time limit of one launch.")] = 60.0,
) -> None:
    """Lint a Metal kernel and run it on the CPU: in three orders, under sanitizers, with every error Metal allows.

    Of an op, every kernel is checked, on the op's samples and against its definition: those in Metal as a file is, the
    others where their device is. What passes reads and writes only its own memory, needs no luck with the order of
    threads, and gives one answer. It says nothing of registers, occupancy, speed, the last bits of exp, or whether
    Apple's compiler accepts it.

    Examples: m2ml kernel check swiglu; m2ml kernel check scale.metal --kernel scale --grid 64,1,1
    --threadgroup 32,1,1 --buffer x=float32[64] --buffer y=out:float32[64]
    """
    from m2ml_kernels import KernelError

    from m2ml.errors import M2mlError

    is_file = "/" in target or target.endswith(".metal") or Path(target).is_file()
    options = {"--kernel": kernel, "--grid": grid, "--threadgroup": threadgroup}
    with plain_errors():
        try:
            if not is_file:
                reports = _check_op(
                    target, [name for name, given in options.items() if given] + ["--buffer"][: bool(buffer)]
                )
            else:
                if missing := [name for name, given in options.items() if not given]:
                    raise M2mlError(f"to check a file, {' and '.join(missing)} must be given")
                reports = [
                    _check_file(Path(target), kernel, grid, threadgroup, buffer or [], template, include or [], seconds)
                ]
        except KernelError as error:
            raise M2mlError(str(error)) from error
    typer.echo("\n\n".join(report.text for report in reports))
    raise typer.Exit(0 if all(report.passed for report in reports) else 1)


@app.command()
def costs(
    op: Annotated[list[str] | None, typer.Argument(help="Ops; all that have Metal kernels, if none is named.")] = None,
) -> None:
    """Count what the Metal kernels do at their ops' main sizes: bytes, operations, cache lines, and the floor they set.

    Bytes are those between the GPU and its memory, beside the least that the op must move; a buffer of at most 64 KiB
    counts once. The time is what an M2 Max needs at the least for the bytes or the operations, by the roofline: no
    kernel can be faster there, and how much slower one is, only a Mac can tell.
    """
    with plain_errors():
        from m2ml.equivalence.kernels import cost_table

        table = cost_table(op or [])
    typer.echo(table)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The op's name, a Python identifier in lower case.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; a new folder NAME here, if not given.", file_okay=False)
    ] = None,
) -> None:
    """Write a package with an op, its samples, a kernel in C++ and one in Metal, that passes every check as it stands.

    Then: pip install ./NAME; m2ml kernel check NAME; m2ml conformance cpu --part ops.
    """
    with plain_errors():
        from m2ml.cli.kernel_template import write

        for path in write(name, folder or Path(name)):
            typer.echo(path)


def _check_op(name: str, unwanted: list[str]) -> list[Report]:
    from m2ml.equivalence.kernels import check_kernel, find_op, kernels_of
    from m2ml.errors import M2mlError

    if unwanted:
        raise M2mlError(f"{', '.join(unwanted)} is for a file; the launches of {name} are those of its samples")
    op = find_op(name)
    kernels = kernels_of(op)
    if not kernels:
        raise M2mlError(f"{name} has no kernels: its definition runs everywhere")
    return [check_kernel(op, record) for record in kernels]


def _check_file(
    file: Path,
    kernel: str,
    grid: str,
    threadgroup: str,
    buffer: list[str],
    template: str,
    include: list[Path],
    seconds: float,
) -> Report:
    from m2ml_kernels.metal_host import Source
    from m2ml_kernels.metal_host.check import Case
    from m2ml_kernels.metal_host.check import check as run_check
    from m2ml_kernels.metal_host.signature import find_kernel

    from m2ml.errors import M2mlError

    if not file.is_file():
        raise M2mlError(f"there is no file {file}")
    source = Source.read(file, include)
    names = {name: index for index, name in find_kernel(source.text, kernel, source.file).buffer_names().items()}
    buffers = dict(_buffer(text, names, kernel) for text in buffer)
    return run_check(Case(source, kernel, buffers, _three(grid), _three(threadgroup), template, seconds=seconds))


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
