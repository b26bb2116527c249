"""How well a model foretells a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import m2ml
from m2ml import ops
from m2ml.errors import M2mlError
from m2ml.generation.language_model import LanguageModel
from m2ml.models.decoder import Decoder
from m2ml.models.functional import functional


def perplexity(model: LanguageModel, text: str | Sequence[int], *, length: int = 512) -> float:
    """``exp`` of the mean loss per token over pieces of ``length`` tokens, each read from its beginning.

    Raises `M2mlError` for a text of fewer than two tokens.
    """
    tokens = model.words.encode(text) if isinstance(text, str) else list(text)
    if len(tokens) < 2:
        raise M2mlError(f"a text of {len(tokens)} tokens has no perplexity; give at least two")
    length = min(length, model.config.context, len(tokens) - 1)
    decoder = functional(Decoder, model.config)

    def losses(params: Any, inputs: Any, targets: Any) -> Any:
        return ops.softmax_cross_entropy(decoder.apply(params, inputs), targets, ignore_index=-100)

    compiled, total, count = m2ml.jit(losses, backend=model.backend), 0.0, 0
    for start in range(0, len(tokens) - 1, length):
        piece = tokens[start : start + length + 1]
        rest = length + 1 - len(piece)
        inputs = np.array([piece[:-1] + [0] * rest], np.int32)
        targets = np.array([piece[1:] + [-100] * rest], np.int32)
        total += float(np.sum(m2ml.get(compiled(model.params, inputs, targets)), dtype=np.float64))
        count += len(piece) - 1
    return math.exp(total / count)
