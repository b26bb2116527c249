"""``m2ml classify``: what pictures show, by a classifier's own classes or by texts that CLIP compares them with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from m2ml.cli.console import plain_errors
from m2ml.cli.embed import Backend

if TYPE_CHECKING:
    from m2ml.inference import Guess

Model = Annotated[str, typer.Argument(help="Hugging Face folder of an image classifier or a CLIP.")]


def command(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="Files of pictures.")],
    label: Annotated[list[str] | None, typer.Option(help="For CLIP: a text to compare with; once for each.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    backend: Backend = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what pictures show, the likeliest first.

    Examples:

    m2ml classify models/vit photo.jpg other.png --top 3

    m2ml classify models/clip photo.jpg --label "a photo of a cat" --label "a photo of a dog"
    """
    with plain_errors():
        found = _found(model, pictures, label or [], top, backend)
        if as_json:
            results = [
                {"picture": picture, "classes": [vars(guess) for guess in guesses]}
                for picture, guesses in zip(pictures, found, strict=True)
            ]
            typer.echo(json.dumps({"model": model, "results": results}))
            return
        for picture, guesses in zip(pictures, found, strict=True):
            typer.echo(picture)
            for guess in guesses:
                typer.echo(f"  {guess.probability:7.4f}  {guess.label}")


def _found(model: str, pictures: list[str], labels: list[str], top: int, backend: str | None) -> list[list[Guess]]:
    from m2ml.inference import CLIPModel, ImageModel, load
    from m2ml.models import CheckpointError

    loaded = load(model, backend=backend)
    if isinstance(loaded, CLIPModel):
        if not labels:
            raise CheckpointError(f"{model} compares pictures with texts; give each with --label TEXT")
        return loaded.classify(pictures, labels, top=top)
    if not isinstance(loaded, ImageModel):
        raise CheckpointError(f"{model} reads no pictures; give an image classifier or a CLIP")
    if labels:
        raise CheckpointError(f"{model} has classes of its own; --label is for CLIP")
    return loaded.classify(pictures, top=top)
