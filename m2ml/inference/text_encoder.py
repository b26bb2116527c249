"""An encoder of text with its tokenizer and its parameters on a backend: texts to vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import m2ml
from m2ml.models.checkpoints import Checkpoint
from m2ml.models.checkpoints.folder import settings_in
from m2ml.models.encoder import POOLINGS, Encoder, EncoderConfig
from m2ml.models.functional import functional
from m2ml.models.settings import CheckpointError
from m2ml.models.tokenizer import Tokenizer, from_folder

#: Texts are filled up to one of these lengths, so that few programs are compiled.
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

#: Padding never reaches a result, so that any token will do.
PADDING = 0


@dataclass(frozen=True)
class Pooling:
    """How one vector is made of a text: ``kind`` is "mean" or "cls", and ``normalise`` gives it length 1."""

    kind: str = "mean"
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.kind not in POOLINGS:
            raise CheckpointError(f"a text's vector is its {' or '.join(POOLINGS)}; got {self.kind!r}")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """``params`` are arrays of ``backend``; ``longest`` is the most tokens of a text that are read."""

    name: str
    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer | None
    backend: str
    pooling: Pooling
    longest: int

    def __call__(self, tokens: Any, lengths: Any = None, /) -> Any:
        """A vector for each token, ``[b, t, embed]``, of ``tokens int32[b, t]``, padding from ``lengths[b]`` on."""
        counts = None if lengths is None else jnp.asarray(lengths, jnp.int32)
        return self._forward(self.params, jnp.asarray(tokens, jnp.int32), counts)

    def encode(self, texts: str | Sequence[str], *, pooling: Pooling | None = None, batch: int = 32) -> Any:
        """One vector for each text, NumPy float32 ``[texts, embed]``; of one string, ``[embed]``.

        ``pooling`` is the checkpoint's own unless given. Texts of like length are read together, at most ``batch``
        at a time; what is longer than the model reads is cut off.
        """
        if isinstance(texts, str):
            return self.encode([texts], pooling=pooling)[0]
        if batch < 1:
            raise CheckpointError(f"batch is {batch}; it must be at least 1")
        found = np.zeros((len(texts), self.config.transformer.embed_dim), np.float32)
        for rows, tokens, lengths in self._batches(self._tokens(texts), batch):
            vectors = self._vectors(self.params, tokens, lengths, pooling or self.pooling)
            found[rows] = np.asarray(m2ml.get(vectors))[: len(rows)]
        return found

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name} has no tokenizer; put its tokenizer.json beside its weights")
        return [encoding.ids or [PADDING] for encoding in self.tokenizer.rust.encode_batch(list(texts))]

    def _batches(self, tokens: Sequence[Sequence[int]], batch: int) -> Iterator[tuple[Any, Any, Any]]:
        """Texts' numbers, with their tokens and lengths, filled up to sizes of which there are few."""
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = len(tokens[rows[-1]])
            width = min(next((n for n in LENGTHS if n >= longest), longest), self.longest)
            height = min(1 << (len(rows) - 1).bit_length(), batch)
            filled = np.full((height, width), PADDING, np.int32)
            lengths = np.ones(height, np.int32)
            for i, row in enumerate(rows):
                lengths[i] = len(tokens[row])
                filled[i, : lengths[i]] = tokens[row]
            yield rows, filled, lengths

    @cached_property
    def _forward(self) -> Any:
        return m2ml.jit(functional(Encoder, self.config).apply, backend=self.backend)

    @cached_property
    def _vectors(self) -> Any:
        apply = functional(Encoder, self.config).apply

        def vectors(params: Any, tokens: Any, lengths: Any, how: Pooling) -> Any:
            return apply(params, tokens, lengths, method="vectors", pooling=how.kind, normalise=how.normalise)

        return m2ml.jit(vectors, backend=self.backend, static_argnames="how")


def text_encoder(checkpoint: Checkpoint, config: EncoderConfig, params: Any, backend: str) -> TextEncoder:
    """The encoder of a folder, with its tokenizer and the pooling that sentence-transformers wrote beside it."""
    folder, settings = checkpoint.path, checkpoint.settings
    tokenizer = from_folder(folder, settings.values)
    longest = settings_in(folder / "sentence_bert_config.json").integer("max_seq_length", config.context)
    longest = min(longest, config.context)
    if tokenizer is not None:
        tokenizer.rust.enable_truncation(longest)
    return TextEncoder(folder.name, config, params, tokenizer, backend, _pooling(folder), longest)


def _pooling(folder: Path) -> Pooling:
    """What ``modules.json`` names; the mean, of length 1, where there is none."""
    if not (folder / "modules.json").exists():
        return Pooling()
    modules = _modules(folder / "modules.json")
    given = settings_in(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    asked = [name.removeprefix("pooling_mode_") for name, on in given.values.items() if on is True]
    asked = [name.removesuffix("_token").removesuffix("_tokens") for name in asked if not name.startswith("include")]
    if len(asked) > 1 or any(name not in POOLINGS for name in asked):
        raise given.wrong("pooling_mode", ", ".join(asked), f"m2ml pools by {' or '.join(POOLINGS)}")
    if unknown := modules.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise CheckpointError(f"{folder / 'modules.json'} names {sorted(unknown)[0]}, a module that m2ml does not have")
    return Pooling(asked[0] if asked else "mean", "Normalize" in modules)


def _modules(path: Path) -> dict[str, str]:
    """Last names of the classes in ``modules.json`` and their folders."""
    try:
        listed = json.loads(path.read_bytes())
        return {str(item["type"]).rpartition(".")[2]: str(item.get("path", "")) for item in listed}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is no list of modules: {str(error)[:120]}") from error
