"""GGUF files: metadata read as a Hugging Face configuration, blocks kept quantised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from m2ml.models.checkpoints.gguf_blocks import INEXACT, quantized, requantized
from m2ml.models.checkpoints.gguf_header import Stored, read_header
from m2ml.models.checkpoints.mapped import MappedFile
from m2ml.models.settings import CheckpointError, Settings
from m2ml.models.spelling import GGUF, Spelling

_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}

#: ``general.architecture`` -> ``model_type``.
ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "gpt2": "gpt2",
}

#: Key of a Hugging Face configuration -> GGUF's, after the architecture's name.
_KEYS: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "query_pre_attn_scalar": "attention.key_length",
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_inner": "feed_forward_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


class GGUFFile:
    """A GGUF file. ``metadata`` is what it says of itself; ``changed`` how far inexact blocks moved, by type."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header = read_header(self._file)
        self.metadata, self._tensors = header.metadata, header.tensors
        self.shapes = {name: stored.shape for name, stored in self._tensors.items()}
        self.settings = Settings(self._configuration(), str(path))
        self.changed: dict[str, float] = {}

    @property
    def spelling(self) -> Mapping[str, Spelling]:
        return GGUF

    def where(self, name: str) -> str:
        return f"tensor {name} of {self.path}"

    def read(self, name: str) -> Any:
        stored = self._tensors[name]
        if stored.type in _PLAIN:
            return self._file.array(_PLAIN[stored.type], stored.start, stored.shape)
        blocks = self._blocks(stored)
        if stored.type not in INEXACT:
            return quantized(stored.type, blocks, stored.shape)
        found, change = requantized(stored.type, blocks, stored.shape)
        self.changed[stored.type] = max(change, self.changed.get(stored.type, 0.0))
        return found

    def release(self) -> None:
        self._file.release()

    def _blocks(self, stored: Stored) -> Any:
        rows = int(np.prod(stored.shape[:-1], dtype=np.int64))
        return self._file.array(np.uint8, stored.start, (rows, stored.bytes // max(rows, 1)))

    def _configuration(self) -> dict[str, Any]:
        """The metadata in the words of a Hugging Face configuration."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise CheckpointError(f"{self.path} has the architecture {str(name)[:60]!r}; m2ml reads {known} from GGUF")
        found = {key: self.metadata.get(f"{name}.{theirs}") for key, theirs in _KEYS.items()}
        values = {key: value for key, value in found.items() if value is not None}
        kind = "mixtral" if name == "llama" and values.get("num_local_experts") else ARCHITECTURES[name]
        embedding = self.shapes.get("token_embd.weight", (0,))
        values |= {
            "model_type": kind,
            "vocab_size": int(embedding[0]),
            "tie_word_embeddings": "output.weight" not in self.shapes,
            "attention_bias": "blk.0.attn_q.bias" in self.shapes,
            "norm_weight_is_whole": True,  # gemma's, which Hugging Face stores less 1
        }
        if kind in ("qwen2", "qwen3", "qwen3_moe"):
            values["use_sliding_window"] = values.get("sliding_window") is not None
        return values | self._rope(name, values)

    def _rope(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        kind, factor = (self.metadata.get(f"{name}.rope.scaling.{key}") for key in ("type", "factor"))
        scaling: dict[str, Any] = {}
        if kind not in (None, "none"):
            original = self.metadata.get(f"{name}.rope.scaling.original_context_length")
            scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
        if "rope_freqs.weight" in self.shapes:
            factors = self.read("rope_freqs.weight")
            scaling = {"rope_type": "factors", "factors": [float(x) for x in factors.reshape(-1)]}
        dims, head = self.metadata.get(f"{name}.rope.dimension_count"), values.get("head_dim")
        if head is None and values.get("num_attention_heads"):
            head = values.get("hidden_size", 0) // max(int(values["num_attention_heads"]), 1)
        share = {"partial_rotary_factor": dims / head} if dims and head and dims != head else {}
        return {"rope_scaling": scaling, **share} if scaling else share
