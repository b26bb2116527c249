"""Tiny checkpoints of every architecture: their configurations, and weights that follow from a tensor's name alone.

Sizes are awkward: heads grouped, no two sizes alike, a sequence longer than the window, a padded row. Weights of norms
are not ones and biases not zeros, or mistakes in them would not show. `make_golden.py` computes with transformers what
such a checkpoint gives and keeps the numbers in golden_logits.json; the weights themselves are made anew each time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).with_name("golden_logits.json")

#: Tokens of two rows; those of the second from its length on are padding.
LENGTHS = (13, 9)
VOCABULARY = 61

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
_LONGROPE = {
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "sliding_window": 64,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.2, 2.5, 4.0, 7.5],
    },
}

#: Name of the case -> class of transformers, without its endings Config and ForCausalLM, and its configuration.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama, scaled and tied": ("Llama", {**_SIZES, "tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {**_SIZES, "sliding_window": 5, "head_dim": 8}),
    "qwen2": ("Qwen2", {**_SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**_SIZES, "head_dim": 10}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **_SIZES,
            "head_dim": 8,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        },
    ),
    "mixtral": ("Mixtral", {**_SIZES, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5}),
    "gemma2": ("Gemma2", {**_SIZES, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12}),
    "gemma3_text": ("Gemma3Text", {**_SIZES, "head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2}),
    "phi3": ("Phi3", {**_SIZES, "num_attention_heads": 3, "num_key_value_heads": 1, "sliding_window": 5}),
    "phi3, longrope": ("Phi3", {**_SIZES, **_LONGROPE, "original_max_position_embeddings": 16}),
    "phi3, longrope for a long text": ("Phi3", {**_SIZES, **_LONGROPE, "original_max_position_embeddings": 8}),
    "olmo2": ("Olmo2", dict(_SIZES)),
    "smollm3": ("SmolLM3", {**_SIZES, "num_hidden_layers": 3, "no_rope_layer_interval": 2}),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 32}),
    "gpt_neox": (
        "GPTNeoX",
        {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"} | {"hidden_size": 32, "rotary_pct": 0.5},
    ),
    "gpt_neox, one after the other": (
        "GPTNeoX",
        {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
        | {"hidden_size": 32, "use_parallel_residual": False},
    ),
}


def tokens() -> np.ndarray[Any, Any]:
    """int32[2, longest], zeros where a row is padded."""
    rng = np.random.default_rng(11)
    rows = rng.integers(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), np.int32)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[length:] = 0
    return rows


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The float32 weight of a tensor's name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.normal(size=shape).astype(np.float32)
    if len(shape) == 1:
        return np.float32(0.2) * x + np.float32(name.endswith("weight"))
    return x / np.float32(np.sqrt(shape[-1]) / 1.5)


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def write(
    folder: Path,
    case: dict[str, Any],
    *,
    shards: int = 1,
    dtype: str = "float32",
    make: Callable[[str, tuple[int, ...]], Any] = weight,
) -> Path:
    """The checkpoint of a case of `golden` as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]), encoding="utf-8")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = {name: make(name, tuple(shape)).astype(kind) for name, shape in case["tensors"].items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names, places = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file)
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
