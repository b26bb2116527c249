"""What checkpoints call the parameters of a `Decoder`: per family, in Hugging Face's files and in GGUF's."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Spelling:
    """Names of a family's tensors, without ``.weight`` and ``.bias``; those of a layer follow ``block``.

    ``qkv`` and ``up`` have one name where a file holds them as one tensor. ``expert`` stands before the names of each
    expert's matrices; ``experts`` are those of all of them in one, and ``by_mlx`` stands before those that MLX stacked.
    ``transposed``: matrices are stored ``[in, out]``. ``qkv_by_head``: rows are query, key and value of the first head,
    then of the second. ``aliases``: other beginnings
    of the same names. ``ignored``: endings of tensors that are not parameters.
    """

    tokens: str = "model.embed_tokens"
    positions: str = ""
    norm: str = "model.norm"
    head: str = "lm_head"
    block: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = ""
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    out: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{}."
    expert_up: tuple[str, str] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    experts_up: tuple[str, ...] = ("mlp.experts.gate_up_proj",)
    experts_down: str = "mlp.experts.down_proj"
    by_mlx: str = "mlp.switch_mlp."
    stacked_suffix: str = ""
    transposed: bool = False
    qkv_by_head: bool = False
    interleaved_rope: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)


LLAMA = Spelling()
_SANDWICH = replace(
    LLAMA,
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

#: ``model_type`` -> names in Hugging Face's files.
HUGGING_FACE: dict[str, Spelling] = dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "smollm3"), LLAMA
) | {
    "mixtral": replace(
        LLAMA,
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{}.",
        expert_up=("w1", "w3"),
        expert_down="w2",
        experts_up=("block_sparse_moe.experts.gate_up_proj",),
        experts_down="block_sparse_moe.experts.down_proj",
        by_mlx="block_sparse_moe.switch_mlp.",
        aliases=(("block_sparse_moe.", "mlp."),),
    ),
    "phi3": replace(LLAMA, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "gemma3": replace(
        _SANDWICH,
        aliases=(
            ("model.", "language_model.model."),
            ("model.", "model.language_model."),
            ("lm_head", "language_model.lm_head"),
        ),
        ignored=("rotary_emb.inv_freq",),
    ),
    "olmo2": replace(LLAMA, attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm"),
    "gpt2": Spelling(
        tokens="transformer.wte",
        positions="transformer.wpe",
        norm="transformer.ln_f",
        block="transformer.h.{}.",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        transposed=True,
        aliases=(("transformer.", ""),),
        ignored=("attn.bias", "attn.masked_bias"),
    ),
    "gpt_neox": Spelling(
        tokens="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        block="gpt_neox.layers.{}.",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        qkv_by_head=True,
        ignored=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    ),
}

_GGUF = Spelling(
    tokens="token_embd",
    norm="output_norm",
    head="output",
    block="blk.{}.",
    attention_norm="attn_norm",
    mlp_norm="ffn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    q_norm="attn_q_norm",
    k_norm="attn_k_norm",
    out="attn_output",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    router="ffn_gate_inp",
    expert="",
    experts_up=("ffn_gate_exps", "ffn_up_exps"),
    experts_down="ffn_down_exps",
    stacked_suffix=".weight",
    ignored=("rope_freqs.weight", "attn_rot_embd.weight"),
)
_GGUF_SANDWICH = replace(_GGUF, attention_post_norm="post_attention_norm", mlp_post_norm="post_ffw_norm")

#: ``model_type`` -> names in GGUF files.
GGUF: dict[str, Spelling] = {
    "llama": replace(_GGUF, interleaved_rope=True),
    "mistral": replace(_GGUF, interleaved_rope=True),
    "mixtral": replace(_GGUF, interleaved_rope=True),
    "smollm3": replace(_GGUF, interleaved_rope=True),
    "qwen2": _GGUF,
    "qwen3": _GGUF,
    "qwen3_moe": _GGUF,
    "phi3": replace(_GGUF, qkv=("attn_qkv",), up=("ffn_up",)),
    "gemma2": _GGUF_SANDWICH,
    "gemma3_text": _GGUF_SANDWICH,
    "olmo2": _GGUF_SANDWICH,
    "gpt2": replace(_GGUF, positions="position_embd", qkv=("attn_qkv",), up=("ffn_up",)),
}
