"""A tiny model, its logits and their bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_checkpoints import LENGTHS, golden, tokens, write

import m2ml
from m2ml.equivalence import measured_bounds
from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.judgement import judge
from m2ml.models import Decoder, DecoderConfig, functional
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of, load_params

BACKENDS = ("cpu", "mlx")


@dataclass(frozen=True)
class Tiny:
    """A tiny model: where its checkpoint lies, and what its logits on `tiny_checkpoints.tokens` may be."""

    folder: Path
    config: DecoderConfig
    golden: Any
    bound: Bound

    def params(self, backend: str) -> Any:
        return load_params(open_checkpoint(self.folder), self.config, backend=backend)

    def hold(self, logits: Any) -> None:
        """Fail where logits ``[2, longest, vocabulary]`` of a real token leave the bound."""
        found = np.where(real()[..., None], np.asarray(m2ml.get(logits)), self.bound.expected).astype(np.float32)
        report = judge("logits", found, self.bound)
        assert report.ok, str(report)


def real() -> np.ndarray[Any, Any]:
    """Which tokens are no padding."""
    return np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def forward(config: DecoderConfig) -> Any:
    return m2ml.jit(functional(Decoder, config).apply)


def tiny(name: str, folder: Path) -> Tiny:
    """The model of a case of `tiny_checkpoints`, written to ``folder``, and the bound of its logits."""
    case = golden()[name]
    checkpoint = open_checkpoint(write(folder, case, shards=2))
    config = config_of(checkpoint)
    host = load_params(checkpoint, config, backend="reference")
    program = forward(config).program(host, tokens())
    leaves = [np.asarray(x) for x in jax.tree.leaves((host, tokens()))]
    return Tiny(folder, config, np.array(case["logits"]), measured_bounds(program, leaves)[0])
