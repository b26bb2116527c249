"""A decoder with its parameters on a backend, its tokenizer and its name: what generation works with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from m2ml.generation.garbage import collected_later
from m2ml.models.checkpoints import Checkpoint, open_checkpoint
from m2ml.models.decoder import Decoder
from m2ml.models.decoder_config import DecoderConfig
from m2ml.models.functional import functional
from m2ml.models.loading import config_of, load_params
from m2ml.models.settings import DTYPES, CheckpointError, check_dtype
from m2ml.models.tokenizer import Tokenizer, from_folder


class ConversionWarning(UserWarning):
    """Weights were changed because no form that m2ml computes with holds them exactly; it says how far."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """``params`` are arrays of ``backend``; ``tokenizer`` is None where the checkpoint has none."""

    name: str
    config: DecoderConfig
    params: Any
    tokenizer: Tokenizer | None
    backend: str

    def __call__(self, tokens: Any, /) -> Any:
        """Logits float32 ``[b, t, vocab]`` of tokens int32 ``[b, t]``, an array of the backend."""
        return self._forward(self.params, jnp.asarray(tokens, jnp.int32))

    @cached_property
    def _forward(self) -> Any:
        import m2ml

        return m2ml.jit(functional(Decoder, self.config).apply, backend=self.backend)

    @property
    def words(self) -> Tokenizer:
        """The tokenizer. Raises `CheckpointError` where there is none."""
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name} has no tokenizer; put its tokenizer.json beside its weights")
        return self.tokenizer


def load(
    path: str | Path, *, backend: str | None = None, dtype: str | None = None, dequantize: bool = False
) -> LanguageModel:
    """The language model at ``path``: a Hugging Face folder, one quantised by MLX, or a ``.gguf`` file.

    Weights are read where they lie, one parameter at a time, and keep their packed form unless ``dequantize``. What is
    computed in is ``dtype``: unless given, float32 on a CPU, and on a GPU what the checkpoint is in. Raises
    `CheckpointError` where a file is missing, damaged, or of an architecture that is not covered.
    """
    import m2ml

    checkpoint = open_checkpoint(path)
    backend = backend or m2ml.current()
    config = replace(config_of(checkpoint), dtype=dtype or _dtype(checkpoint, backend))
    check_dtype(config.dtype)
    with collected_later():
        tokenizer = tokenizer_of(checkpoint)  # before the weights, so that what making it takes is free for them
        params = load_params(checkpoint, config, backend=backend, dequantize=dequantize)
    for kind, change in getattr(checkpoint, "changed", {}).items():
        warnings.warn(
            ConversionWarning(
                f"{checkpoint.path} has blocks of {kind}, which have become 8 bits in groups of 32: that moved weights"
                f" by up to {change:.1e} of a tensor's largest"
            ),
            stacklevel=2,
        )
    return LanguageModel(Path(path).stem, config, params, tokenizer, backend)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer that lies beside the weights, or in the same file."""
    metadata = getattr(checkpoint, "metadata", None)
    if metadata is None:
        return from_folder(checkpoint.path, checkpoint.settings.values)
    from m2ml.models.gguf_tokenizer import from_gguf

    return from_gguf(metadata, str(checkpoint.path))


def _dtype(checkpoint: Checkpoint, backend: str) -> str:
    from m2ml.plugins import registry

    if registry.get(backend).devices()[0].kind == "cpu":
        return "float32"
    said = checkpoint.settings.get("dtype") or checkpoint.settings.get("torch_dtype")
    return said if said in DTYPES else "float16"
