"""``m2ml demo``: the same training on every backend that runs here, and proof that the numbers agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import Bar, make_console, plain_errors, progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from m2ml.cli.demo_report import Study
    from m2ml.training.tasks import Task

REFERENCE = "reference"
#: Perturbed trainings that measure the bound; each costs several trainings on the reference.
RUNS = 2


def command(
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file for the GPT; Shakespeare if not given.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images for the CNN, as in m2ml train cnn; MNIST digits if not given.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Train on this backend only; may be repeated. All that run here if not given."),
    ] = None,
    gpt_steps: Annotated[int, typer.Option(min=1, help="Training steps of the GPT.")] = 400,
    cnn_steps: Annotated[int, typer.Option(min=1, help="Training steps of the CNN.")] = 200,
    compared_steps: Annotated[
        int, typer.Option(min=1, help="Steps the reference makes, over which the loss curves are compared.")
    ] = 25,
    seed: Annotated[int, typer.Option(min=0, help="Decides initial weights and batches.")] = 0,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the picture and the report.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small GPT on Shakespeare and a small CNN on digits on every backend that runs here.

    Both models are written once, in Flax and Optax. Every backend starts from the same weights and sees the same
    batches. The reference (NumPy in float64) trains too, for the first steps, and then again with every result moved
    by its rounding error: how far that moves the loss is how far any backend may be from it. Writes loss.png and
    report.json, asks SmolLM2-135M a question, and exits with 1 when a backend fails or disagrees.
    """
    with plain_errors():
        from m2ml.cli import demo_report
        from m2ml.cli.settings import PRESETS, load, make_task
        from m2ml.training.state import OptimizerConfig

        began, console = time.perf_counter(), make_console()
        names = _names(backend)
        studies = []
        for kind, source, steps in (("gpt", text, gpt_steps), ("cnn", images, cnn_steps)):
            data, preset = load(kind, source), PRESETS[kind]["tiny"]
            if data.note:
                console.print(f"note: {data.note}")
            optimizer = OptimizerConfig(steps, preset.learning_rate)
            task = make_task(data, preset.model, optimizer=optimizer, batch_size=preset.batch_size, seed=seed)
            console.print(demo_report.title(task))
            with progress(console) as display:
                studies.append(_study(task, names, compared_steps, display))
        demo_report.show(studies, console)
        paths = demo_report.write(studies, out, seconds=time.perf_counter() - began)
        _speak(console, [name for name in names if name != REFERENCE])
        typer.echo(f"wrote {' and '.join(map(str, paths))}; the demo took {time.perf_counter() - began:.0f} s")
    if not all(study.ok for study in studies):
        raise typer.Exit(1)


QUESTION = "What is the capital of Japan? Answer in one sentence."


def _speak(console: Console, names: Sequence[str]) -> None:
    """A few words from a real language model, on each backend; a note where its package is out of reach."""
    from m2ml.data import DataError, smollm2
    from m2ml.data.errors import RegistryError
    from m2ml.errors import M2mlError, in_one_line
    from m2ml.generation import load
    from m2ml.generation.conversation import Conversation

    try:
        path = smollm2()
    except (DataError, RegistryError) as error:
        console.print(f"note: no language model speaks ({error})")
        return
    console.print(f"SmolLM2-135M, quantised, is asked: {QUESTION}")
    for name in names:
        try:
            answer = Conversation(load(path, backend=name)).ask(QUESTION, max_tokens=32)
            console.print(f"{name:<9} {answer.text()}  [{answer.statistics}]")
        except (M2mlError, RuntimeError) as error:
            console.print(f"{name:<9} failed: {in_one_line(error)}")


def _names(asked: Sequence[str] | None) -> list[str]:
    """The backends to train on, the reference first because the others are held against it."""
    import m2ml
    from m2ml.plugins import registry

    for name in asked or ():
        registry.get(name)
    return sorted({REFERENCE, *(asked or m2ml.backends())}, key=lambda name: (name != REFERENCE, name))


def _study(task: Task, names: Sequence[str], compared_steps: int, display: Progress) -> Study:
    """Train ``task`` on each backend, then measure how far their losses may be apart."""
    from m2ml.cli.demo_report import Study
    from m2ml.errors import M2mlError, in_one_line
    from m2ml.training.agreement import measure
    from m2ml.training.session import Session

    study = Study(task)
    for name in names:
        end = min(compared_steps, task.optimizer.steps) if name == REFERENCE else task.optimizer.steps
        bar = Bar(display, name, end, task.unit, task.units_per_step)
        session = Session(task, name)
        try:
            session.train(end=end, on_chunk=bar.chunk)
        except (M2mlError, RuntimeError) as error:  # an engine's own failure is its row in the table, not the end
            study.failures[name] = in_one_line(error)
            bar.finish("failed")
        else:
            study.sessions[name] = session
    if REFERENCE in study.sessions:
        losses = study.sessions[REFERENCE].losses
        bar = Bar(display, "rounding", RUNS * len(losses), task.unit, task.units_per_step)
        study.agreement = measure(task, losses, runs=RUNS, on_step=lambda: bar.advance(1, "what rounding does"))
    return study
