"""The command ``m2ml``. Commands import what they run when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import typer

from m2ml.cli import (
    classify,
    compare,
    conformance,
    convert,
    demo,
    embed,
    fuzz,
    inspect,
    kernel,
    language,
    train,
    tune,
    verify,
)

app = typer.Typer(
    name="m2ml",
    help="Write a model once in JAX; run it on MLX, JAX on Metal, CPU or CUDA, and see that the numbers agree.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("demo")(demo.command)
app.add_typer(train.app, name="train")
app.command("generate")(language.generate)
app.command("chat")(language.chat)
app.command("embed")(embed.command)
app.command("classify")(classify.command)
app.command("convert")(convert.convert)
app.command("quantize")(convert.quantize)
app.command("backends")(inspect.backends)
app.command("doctor")(inspect.doctor)
app.command("explain")(inspect.explain)
app.command("tune")(tune.command)
app.command("conformance")(conformance.command)
app.command("fuzz")(fuzz.command)
app.command("verify")(verify.command)
app.command("compare")(compare.command)
app.add_typer(kernel.app, name="kernel")
