"""The architectures `Decoder` covers: how each one's Hugging Face configuration reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from m2ml.models.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig, Rope
from m2ml.models.settings import BROKEN, CheckpointError, Settings

#: ``model_type`` -> its configuration.
DECODERS: dict[str, Callable[[Settings], DecoderConfig]] = {}

#: Layers and experts beyond this are a damaged file.
MOST = 4096

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def decoder_config(values: Mapping[str, Any], source: str) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face ``config.json``. Raises `CheckpointError` for one that is not covered."""
    settings = Settings(values, source)
    kind = model_type(settings)
    try:
        return DECODERS[kind](settings)
    except CheckpointError:
        raise
    except BROKEN as error:
        raise settings.broken(kind, error) from error


def model_type(settings: Settings) -> str:
    """The ``model_type``, which must be known."""
    kind = str(settings.get("model_type"))
    if kind not in DECODERS:
        raise CheckpointError(
            f"{settings.source} has model_type {kind[:60]!r}; m2ml reads {', '.join(sorted(DECODERS))}"
        )
    return kind


def _decoder(*names: str) -> Callable[[Callable[[Settings], DecoderConfig]], Callable[[Settings], DecoderConfig]]:
    def register(read: Callable[[Settings], DecoderConfig]) -> Callable[[Settings], DecoderConfig]:
        DECODERS.update(dict.fromkeys(names, read))
        return read

    return register


def _layers(s: Settings, name: str = "num_hidden_layers") -> int:
    return s.integer(name, most=MOST)


def _activation(s: Settings, name: str, default: str) -> str:
    value = s.get(name, default)
    if value not in _ACTIVATIONS:
        raise s.wrong(name, value, f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _rope(s: Settings, head_dim: int, *, kind: str | None = None, theta: str = "rope_theta") -> Rope:
    """Rotary positions as transformers 4 (``rope_theta``, ``rope_scaling``) or 5 (``rope_parameters``) writes them."""
    given = s.part("rope_parameters")
    given = given.part(kind) if kind and kind in given.values else given
    base = given.get("rope_theta") or s.number(theta, 10000.0)
    share = given.get("partial_rotary_factor") or s.get("partial_rotary_factor", 1.0)
    scaling = {**s.part("rope_scaling").values, **given.values}
    scaling = {k: v for k, v in scaling.items() if k not in ("rope_theta", "partial_rotary_factor")}
    name = scaling.get("rope_type", scaling.get("type", "default"))
    if name == "factors":  # as GGUF has them
        return Rope(int(head_dim * share), float(base), factors=tuple(map(float, scaling["factors"])))
    if name in ("longrope", "su"):
        return _longrope(s, int(head_dim * share), float(base), Settings(scaling, s.source))
    known = ("default", "linear", "llama3", "yarn", "longrope")
    if name not in known:
        raise s.wrong("rope_type", name, f"known are {', '.join(known)}")
    items = () if name == "default" else tuple(sorted((k, v) for k, v in scaling.items() if v is not None))
    return Rope(int(head_dim * share), float(base), items)


def _longrope(s: Settings, dims: int, base: float, scaling: Settings) -> Rope:
    """Factors for texts up to the original context and for longer ones (Ding et al., 2024), as phi3 has them."""
    context = s.integer("max_position_embeddings")
    original = scaling.integer("original_max_position_embeddings", s.get("original_max_position_embeddings", context))
    factor = scaling.number("factor", context / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    short, long = (_factors(scaling, name, dims // 2) for name in ("short_factor", "long_factor"))
    return Rope(dims, base, (), short, long, original, scaling.number("attention_factor", magnitude))


def _factors(scaling: Settings, name: str, count: int) -> tuple[float, ...]:
    value = scaling.get(name)
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(f, int | float) and f > 0 for f in value)
    ):
        raise scaling.wrong(name, value, f"it must be a list of {count} positive numbers")
    return tuple(map(float, value))


def _windows(s: Settings, layers: int, window: int | None, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer, by ``layer_types`` where the configuration has them."""
    kinds = s.get("layer_types")
    if kinds is None:
        return tuple(window if sliding(i) else None for i in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
        wanted = f"it must say full_attention or sliding_attention for each of {layers} layers"
        raise s.wrong("layer_types", kinds, wanted)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _common(s: Settings, **more: Any) -> dict[str, Any]:
    """What nearly all of them spell alike."""
    embed, heads = s.integer("hidden_size"), s.integer("num_attention_heads")
    return {
        "vocab_size": s.integer("vocab_size"),
        "embed_dim": embed,
        "heads": heads,
        "kv_heads": s.integer("num_key_value_heads", heads),
        "head_dim": s.integer("head_dim", max(embed // heads, 1)),
        "mlp_dim": s.integer("intermediate_size"),
        "context": s.integer("max_position_embeddings", 2048),
        "norm_eps": s.number("rms_norm_eps", 1e-6),
        "activation": _activation(s, "hidden_act", "silu"),
        "tied": bool(s.get("tie_word_embeddings", False)),
        **more,
    }


def _blocks(s: Settings, fields: Mapping[str, Any], sliding: Callable[[int], bool] | None = None) -> Any:
    """Layers with one kind of rotary positions, and a window where ``sliding(layer)``."""
    layers, rope = _layers(s), _rope(s, fields["head_dim"])
    window = s.integer("sliding_window") if s.get("sliding_window") else None
    windows = _windows(s, layers, window, sliding or (lambda i: True))
    return tuple(LayerConfig(window, rope) for window in windows)


@_decoder("llama")
def _llama(s: Settings) -> DecoderConfig:
    bias = bool(s.get("attention_bias", False))
    fields = _common(s, qkv_bias=bias, out_bias=bias, mlp_bias=bool(s.get("mlp_bias", False)))
    rope = _rope(s, fields["head_dim"])
    return DecoderConfig(**fields, blocks=(LayerConfig(rope=rope),) * _layers(s))


@_decoder("mistral")
def _mistral(s: Settings) -> DecoderConfig:
    fields = _common(s)
    return DecoderConfig(**fields, blocks=_blocks(s, fields))


def _used_window(s: Settings) -> Callable[[int], bool]:
    """Qwen's window is written down even where it is not used, and starts at a layer."""
    first = s.get("max_window_layers", 0)
    return lambda i: bool(s.get("use_sliding_window", False)) and i >= first


@_decoder("qwen2")
def _qwen2(s: Settings) -> DecoderConfig:
    fields = _common(s, qkv_bias=True)
    return DecoderConfig(**fields, blocks=_blocks(s, fields, _used_window(s)))


@_decoder("qwen3")
def _qwen3(s: Settings) -> DecoderConfig:
    bias = bool(s.get("attention_bias", False))
    fields = _common(s, qk_norm="head", qkv_bias=bias, out_bias=bias)
    return DecoderConfig(**fields, blocks=_blocks(s, fields, _used_window(s)))


@_decoder("qwen3_moe")
def _qwen3_moe(s: Settings) -> DecoderConfig:
    bias = bool(s.get("attention_bias", False))
    fields = _common(s, qk_norm="head", qkv_bias=bias, out_bias=bias)
    count = s.integer("num_experts", s.get("num_local_experts", 128), most=MOST)
    experts = ExpertsConfig(
        count,
        s.integer("num_experts_per_tok", 8),
        s.integer("moe_intermediate_size"),
        bool(s.get("norm_topk_prob", False)),
    )
    every, dense = s.integer("decoder_sparse_step", 1), s.get("mlp_only_layers", [])
    blocks = _blocks(s, fields, lambda i: bool(s.get("use_sliding_window", False)))
    blocks = tuple(
        LayerConfig(b.window, b.rope, sparse=i not in dense and (i + 1) % every == 0) for i, b in enumerate(blocks)
    )
    return DecoderConfig(**fields, experts=experts, blocks=blocks)


@_decoder("mixtral")
def _mixtral(s: Settings) -> DecoderConfig:
    fields = _common(s)
    count = s.integer("num_local_experts", s.get("num_experts", 8), most=MOST)
    experts = ExpertsConfig(count, s.integer("num_experts_per_tok", 2), fields["mlp_dim"])
    blocks = tuple(LayerConfig(b.window, b.rope, sparse=True) for b in _blocks(s, fields))
    return DecoderConfig(**fields, experts=experts, blocks=blocks)


def _gemma(s: Settings, **more: Any) -> dict[str, Any]:
    norm = "rms" if s.get("norm_weight_is_whole") else "rms_plus_one"
    fields = _common(s, norm=norm, post_norms=True, **more)
    scalar = s.number("query_pre_attn_scalar", 256.0)
    name = "hidden_activation" if s.get("hidden_activation") else "hidden_act"
    return fields | {
        "head_dim": s.integer("head_dim", 256),
        "attention_scale": scalar**-0.5,
        "activation": _activation(s, name, "gelu_pytorch_tanh"),
        "embed_scale": float(fields["embed_dim"]) ** 0.5,
        "attention_soft_cap": s.get("attn_logit_softcapping"),
        "logit_soft_cap": s.get("final_logit_softcapping"),
        "tied": bool(s.get("tie_word_embeddings", True)),
    }


@_decoder("gemma2")
def _gemma2(s: Settings) -> DecoderConfig:
    fields = _gemma(s)
    return DecoderConfig(**fields, blocks=_blocks(s, fields, lambda i: i % 2 == 0))


@_decoder("gemma3_text")
def _gemma3_text(s: Settings) -> DecoderConfig:
    fields, layers = _gemma(s, qk_norm="head"), _layers(s)
    pattern = s.integer("sliding_window_pattern", 6)
    windows = _windows(s, layers, s.integer("sliding_window", 4096), lambda i: bool((i + 1) % pattern))
    distant = _rope(s, fields["head_dim"], kind="full_attention")
    if s.get("rope_parameters"):
        near = _rope(s, fields["head_dim"], kind="sliding_attention")
    else:
        near = Rope(fields["head_dim"], s.number("rope_local_base_freq", 10000.0))
    blocks = tuple(LayerConfig(window, distant if window is None else near) for window in windows)
    return DecoderConfig(**fields, blocks=blocks)


@_decoder("gemma3")
def _gemma3(s: Settings) -> DecoderConfig:
    """The text half of the model that reads images too."""
    return _gemma3_text(s.part("text_config"))


@_decoder("phi3")
def _phi3(s: Settings) -> DecoderConfig:
    """Its long models name a window that nothing they read fills."""
    fields = _common(s)
    blocks = tuple(
        replace(block, window=None) if block.window and block.window >= fields["context"] else block
        for block in _blocks(s, fields)
    )
    if any(block.window and block.rope and block.rope.long_factors for block in blocks):
        raise s.wrong("sliding_window", s.get("sliding_window"), "m2ml reads longrope models without a window")
    return DecoderConfig(**fields, blocks=blocks)


@_decoder("olmo2")
def _olmo2(s: Settings) -> DecoderConfig:
    bias = bool(s.get("attention_bias", False))
    fields = _common(s, qk_norm="all", pre_norms=False, post_norms=True, qkv_bias=bias, out_bias=bias)
    rope = _rope(s, fields["head_dim"])
    return DecoderConfig(**fields, blocks=(LayerConfig(rope=rope),) * _layers(s))


@_decoder("smollm3")
def _smollm3(s: Settings) -> DecoderConfig:
    bias = bool(s.get("attention_bias", False))
    fields = _common(s, qkv_bias=bias, out_bias=bias, mlp_bias=bool(s.get("mlp_bias", False)))
    fields["tied"] = bool(s.get("tie_word_embeddings", True))
    blocks, every = _blocks(s, fields, lambda i: bool(s.get("use_sliding_window", False))), s.get("no_rope_layers")
    interval = s.integer("no_rope_layer_interval", 4)
    turned = every if every is not None else [(i + 1) % interval != 0 for i in range(len(blocks))]
    if not isinstance(turned, list) or len(turned) != len(blocks):
        raise s.wrong("no_rope_layers", turned, f"it must have a number for each of {len(blocks)} layers")
    blocks = tuple(LayerConfig(b.window, b.rope if kept else None) for b, kept in zip(blocks, turned, strict=True))
    return DecoderConfig(**fields, blocks=blocks)


@_decoder("gpt2")
def _gpt2(s: Settings) -> DecoderConfig:
    embed, heads = s.integer("n_embd"), s.integer("n_head")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if s.get(name):
            raise s.wrong(name, True, "m2ml reads models without it")
    return DecoderConfig(
        vocab_size=s.integer("vocab_size"),
        embed_dim=embed,
        heads=heads,
        kv_heads=heads,
        head_dim=max(embed // heads, 1),
        mlp_dim=s.integer("n_inner", 4 * embed),
        context=s.integer("n_positions", 1024),
        blocks=(LayerConfig(),) * _layers(s, "n_layer"),
        norm="layer",
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        activation=_activation(s, "activation_function", "gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        attention_scale=None if s.get("scale_attn_weights", True) else 1.0,
        tied=bool(s.get("tie_word_embeddings", True)),
    )


@_decoder("gpt_neox")
def _gpt_neox(s: Settings) -> DecoderConfig:
    fields, bias = _common(s, norm="layer", gated=False, mlp_bias=True), bool(s.get("attention_bias", True))
    theta = "rope_theta" if s.get("rope_theta") else "rotary_emb_base"
    rope = _rope(s, fields["head_dim"], theta=theta)
    if "partial_rotary_factor" not in {**s.values, **s.part("rope_parameters").values}:
        rope = Rope(int(fields["head_dim"] * s.number("rotary_pct", 0.25)), rope.base, rope.scaling)
    fields |= {
        "norm_eps": s.number("layer_norm_eps", 1e-5),
        "activation": _activation(s, "hidden_act", "gelu"),
        "parallel": bool(s.get("use_parallel_residual", True)),
        "qkv_bias": bias,
        "out_bias": bias,
    }
    return DecoderConfig(**fields, blocks=(LayerConfig(rope=rope),) * _layers(s))
