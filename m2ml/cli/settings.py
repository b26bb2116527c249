"""From what the command line says, and what a checkpoint says, to a training session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2ml.data import DataError, Images, Text, load_images, load_text, read_images, read_text
from m2ml.errors import M2mlError
from m2ml.models import CNNConfig, GPTConfig
from m2ml.plugins import registry
from m2ml.training import checkpoint
from m2ml.training.session import Session
from m2ml.training.state import OptimizerConfig
from m2ml.training.tasks import Task, cnn_task, gpt_task


class OptionError(M2mlError, ValueError):
    """Options contradict each other or a checkpoint."""


@dataclass(frozen=True)
class Preset:
    """A size: the model's dimensions and the training options that suit them."""

    model: Mapping[str, Any]
    steps: int
    batch_size: int
    learning_rate: float


PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "gpt": {
        "tiny": Preset({"layers": 2, "heads": 4, "embed_dim": 64, "context": 32}, 400, 16, 6e-3),
        "small": Preset({"layers": 4, "heads": 4, "embed_dim": 128, "context": 64}, 1000, 16, 3e-3),
        "medium": Preset({"layers": 6, "heads": 6, "embed_dim": 384, "context": 256}, 3000, 32, 1e-3),
    },
    "cnn": {
        "tiny": Preset({"features": (8, 16), "hidden_dim": 32}, 200, 32, 1e-2),
        "small": Preset({"features": (16, 32), "hidden_dim": 64}, 500, 32, 3e-3),
        "medium": Preset({"features": (32, 64, 128), "hidden_dim": 256}, 1500, 64, 1e-3),
    },
}


@dataclass(frozen=True)
class Request:
    """What the command line said. None, or a missing key of ``model``, means that it said nothing."""

    task: str
    backend: str
    data: Path | None = None
    size: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    out: Path | None = None
    resume: Path | None = None
    checkpoint_every: int = 100


def open_session(request: Request) -> Session:
    """The session that ``request`` asks for: new, or gone on with from a checkpoint."""
    if request.backend != "auto":
        registry.get(request.backend)
    folder = request.out or request.resume or Path("runs") / request.task
    if request.resume is None:
        return _session(request, folder, None)
    record = checkpoint.read_record(request.resume)
    if record.run.get("task") != request.task:
        raise OptionError(
            f"the checkpoint in {request.resume} is of a {record.run.get('task')}, not a {request.task};"
            f" resume it with: m2ml train {record.run.get('task')} --resume {request.resume}"
        )
    session = _session(request, folder, record.run)
    if record.step > session.task.optimizer.steps:
        raise OptionError(f"the checkpoint is at step {record.step}, past the {session.task.optimizer.steps} asked for")
    session.resume(request.resume)
    return session


def _session(request: Request, folder: Path, recorded: Mapping[str, Any] | None) -> Session:
    if folder != request.resume and checkpoint.exists(folder):
        raise OptionError(
            f"{folder} holds a checkpoint already: go on from it with --resume {folder}, or choose another --out"
        )
    source = request.data or (recorded and recorded.get("source") and Path(recorded["source"])) or None
    data = load(request.task, source)
    if recorded and recorded["data"]["fingerprint"] != data.fingerprint:
        raise DataError(
            f"the checkpoint was trained on {recorded['data']['name']}, which is not what {data.name} holds now;"
            " pass the data it was trained on"
        )
    extra = {"source": str(source.resolve()) if source else None}
    return Session(_task(request, data, recorded), request.backend, folder, request.checkpoint_every, extra)


def load(task: str, source: Path | None) -> Any:
    """The text or the images in ``source``, or the ones that are fetched when there is none."""
    if task == "gpt":
        return read_text(source) if source else load_text()
    return read_images(source) if source else load_images()


def _task(request: Request, data: Text | Images, recorded: Mapping[str, Any] | None) -> Task:
    """The task by these rules: an option, else what the checkpoint says, else the preset; the first two must agree."""
    presets = PRESETS[request.task]
    if request.size not in (None, *presets):
        raise OptionError(f"there is no size {request.size}; sizes of a {request.task} are {', '.join(presets)}")
    preset = presets[request.size or "small"]
    model = _settled(
        preset.model, {**(preset.model if request.size else {}), **request.model}, recorded and recorded["model"]
    )
    run = _settled(
        {"batch_size": preset.batch_size, "seed": 0},
        {"batch_size": request.batch_size, "seed": request.seed},
        recorded,
    )
    rates: Mapping[str, Any] = {"steps": preset.steps, "learning_rate": preset.learning_rate}
    if recorded:
        rates = {**recorded["optimizer"], "steps": request.steps or recorded["optimizer"]["steps"]}
    asked = {"steps": request.steps, "learning_rate": request.learning_rate}
    optimizer = OptimizerConfig(**_settled(rates, asked, rates if recorded else None))
    return make_task(data, model, optimizer=optimizer, batch_size=run["batch_size"], seed=run["seed"])


def _settled(
    defaults: Mapping[str, Any], given: Mapping[str, Any], recorded: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """What holds: ``recorded`` if there is a checkpoint, which what is given must agree with; else given or default."""
    given = {name: value for name, value in given.items() if value is not None}
    if recorded is None:
        return {**defaults, **given}
    for name, value in given.items():
        there = recorded.get(name)
        if (tuple(there) if isinstance(there, list) else there) != value:
            raise OptionError(
                f"{name} is {there} in the checkpoint and {value} in the options;"
                " leave the option out, or start a new run with another --out"
            )
    return recorded


def make_task(data: Text | Images, model: Mapping[str, Any], **common: Any) -> Task:
    """A task on ``data``, whose own dimensions (vocabulary, image size, classes) go into the model's configuration."""
    try:
        if isinstance(data, Text):
            return gpt_task(data, GPTConfig(**{**model, "vocab_size": len(data.vocabulary)}), **common)
        height, width, channels = data.shape
        own = {"height": height, "width": width, "channels": channels, "classes": data.classes}
        return cnn_task(data, CNNConfig(**{**model, **own}), **common)
    except M2mlError:
        raise
    except ValueError as error:
        raise OptionError(str(error)) from error
