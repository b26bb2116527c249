"""``m2ml train``: train a GPT on text or a CNN on images, on any backend, with checkpoints."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2ml.cli.console import Bar, make_console, plain_errors, progress

if TYPE_CHECKING:
    from m2ml.training.loop import Chunk
    from m2ml.training.session import Session

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on any backend; stop it with Ctrl-C, resume it bit for bit, move it between backends.",
)

Size = Annotated[str | None, typer.Option(help="tiny, small (the default) or medium: dimensions and fitting options.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps in all; the learning rate decays over them.")]
BatchSize = Annotated[int | None, typer.Option("--batch", min=1, help="Sequences or images per step.")]
LearningRate = Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Decides initial weights, batches and dropout.")]
Backend = Annotated[str | None, typer.Option(help="Backend to train on, or auto; see m2ml backends.")]
Out = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Folder for checkpoint, loss curve and report; runs/MODEL if not given."),
]
Resume = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Go on from the checkpoint in this folder, whichever backend made it."),
]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
LogEvery = Annotated[int, typer.Option(min=1, help="Steps between lines that say the loss.")]
Dropout = Annotated[float | None, typer.Option(min=0, max=0.99, help="Share of activations dropped in training.")]


@app.command("gpt")
def gpt(
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file; Shakespeare if not given.")] = None,
    size: Size = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Transformer blocks.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; they divide --embed-dim.")] = None,
    embed_dim: Annotated[int | None, typer.Option(min=1, help="Width of the model.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Characters the model sees.")] = None,
    dropout: Dropout = None,
    steps: Steps = None,
    batch: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    backend: Backend = None,
    out: Out = None,
    resume: Resume = None,
    checkpoint_every: CheckpointEvery = 100,
    log_every: LogEvery = 100,
    sample: Annotated[int, typer.Option(min=0, help="Characters to write when training is over.")] = 300,
) -> None:
    """Train a character-level GPT on text.

    Writes checkpoint.json with its arrays, loss.png and report.json into the --out folder, then a sample of text.

    Examples:

    m2ml train gpt --size tiny --backend mlx

    m2ml train gpt --text novel.txt --layers 6 --embed-dim 256 --steps 2000 --out runs/novel

    m2ml train gpt --resume runs/novel --backend cpu
    """
    with plain_errors():
        model = {"layers": layers, "heads": heads, "embed_dim": embed_dim, "context": context, "dropout": dropout}
        session = _train(
            log_every,
            backend,
            task="gpt",
            data=text,
            size=size,
            model=model,
            steps=steps,
            batch_size=batch,
            learning_rate=learning_rate,
            seed=seed,
            out=out,
            resume=resume,
            checkpoint_every=checkpoint_every,
        )
        from m2ml.training.evaluate import generate

        written = generate(session.task, session.state.params, backend=session.backend, length=sample)
        if written:
            typer.echo(f"\nThe model writes:\n{written}\n")
        _report(session, {"sample": written})


@app.command("cnn")
def cnn(
    images: Annotated[
        Path | None,
        typer.Option(
            help=".npz with images and labels, or MNIST's IDX files (or their folder); MNIST digits if not given."
        ),
    ] = None,
    size: Size = None,
    features: Annotated[
        str | None, typer.Option(help="Channels of each convolution, such as 16,32; each halves the image.")
    ] = None,
    hidden_dim: Annotated[int | None, typer.Option(min=1, help="Width of the hidden dense layer.")] = None,
    dropout: Dropout = None,
    steps: Steps = None,
    batch: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    backend: Backend = None,
    out: Out = None,
    resume: Resume = None,
    checkpoint_every: CheckpointEvery = 100,
    log_every: LogEvery = 100,
) -> None:
    """Train a small convolutional network to tell classes of images apart.

    Writes checkpoint.json with its arrays, loss.png and report.json into the --out folder, and says the test accuracy.

    --images takes an .npz with arrays images [count, height, width] or [count, height, width, channels] (uint8, or
    floats from 0 to 1) and labels [count], and perhaps test_images and test_labels; without those a fifth is held out.
    It also takes an IDX file of images such as train-images-idx3-ubyte.gz with its labels beside it, or a folder of
    such pairs.

    Examples:

    m2ml train cnn --backend mlx

    m2ml train cnn --images fashion-mnist/ --features 32,64 --steps 2000 --out runs/fashion
    """
    with plain_errors():
        session = _train(
            log_every,
            backend,
            task="cnn",
            data=images,
            size=size,
            model={"features": _sizes(features), "hidden_dim": hidden_dim, "dropout": dropout},
            steps=steps,
            batch_size=batch,
            learning_rate=learning_rate,
            seed=seed,
            out=out,
            resume=resume,
            checkpoint_every=checkpoint_every,
        )
        from m2ml.training.evaluate import accuracy

        share = accuracy(session.task, session.state.params, backend=session.backend)
        typer.echo(f"test accuracy: {share:.1%} of {len(session.task.data.test[1]):,} images")
        _report(session, {"test_accuracy": share})


def _sizes(text: str | None) -> tuple[int, ...] | None:
    from m2ml.cli.settings import OptionError

    try:
        return None if text is None else tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise OptionError(f"--features is written like 16,32; got {text}") from error


def _train(log_every: int, backend: str | None, **asked: Any) -> Session:
    """Train with a live bar until the last step or Ctrl-C; the checkpoint is on disk when this returns."""
    import m2ml
    from m2ml.cli.settings import Request, open_session
    from m2ml.models import parameter_count

    session = open_session(Request(backend=backend or m2ml.current(), **asked))
    task, console = session.task, make_console()
    if task.data.note:
        console.print(f"note: {task.data.note}")
    console.print(
        f"{task.name} of {parameter_count(task.model.shapes()):,} parameters on {task.data.name},"
        f" steps {session.step} to {task.optimizer.steps}, backend {session.backend}"
    )
    with progress(console) as display, _ctrl_c() as stopped:
        bar = Bar(display, session.backend, task.optimizer.steps, task.unit, task.units_per_step)
        bar.advance(session.step, "compiling")

        def on_chunk(chunk: Chunk) -> None:
            bar.chunk(chunk)
            for step in range(chunk.step - len(chunk.losses) + 1, chunk.step + 1):
                if step % log_every == 0:
                    console.print(f"step {step:>7,}  loss {chunk.losses[step - chunk.step - 1]:.4f}")

        session.train(on_chunk=on_chunk, should_stop=stopped.is_set)
    if session.step < task.optimizer.steps:
        console.print(f"stopped at step {session.step}; go on with: m2ml train {task.name} --resume {session.folder}")
    return session


class _ctrl_c:  # noqa: N801 - reads as a verb in a with statement
    """The first Ctrl-C sets the event, so that the run ends at a checkpoint; a second one ends it at once."""

    def __enter__(self) -> threading.Event:
        self._event = threading.Event()
        self._previous: Callable[..., Any] | int | None = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._stop)
        return self._event

    def _stop(self, *_: Any) -> None:
        self._event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _report(session: Session, result: dict[str, Any]) -> None:
    from m2ml.training.report import Panel, write_curves, write_json

    assert session.folder is not None
    task, picture, report = session.task, session.folder / "loss.png", session.folder / "report.json"
    speed = session.speed.steps_per_second
    content = {
        **task.record(),
        **session.extra,
        "backend": session.backend,
        "step": session.step,
        "steps_per_second": speed,
        f"{task.unit}_per_second": speed and speed * task.units_per_step,
        "losses": session.losses.tolist(),
        **result,
    }
    write_json(report, content)
    write_curves(picture, [Panel(f"{task.name} on {task.data.name}", {session.backend: session.losses})])
    typer.echo(f"wrote {session.folder / 'checkpoint.json'}, {picture} and {report}")
