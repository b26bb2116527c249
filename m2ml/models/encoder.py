"""Encoders of text: bert, roberta, xlm-roberta, distilbert, and sentence encoders made of them such as MiniLM."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.family import Family, Theirs, layer_names
from m2ml.models.layers import LayerNorm, of_length_one
from m2ml.models.projection import Table, value_of
from m2ml.models.settings import Settings
from m2ml.models.transformer import MOST_LAYERS, Transformer, TransformerConfig, activation_of

Array = jax.Array

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder of text.

    ``positions`` is how many rows the table of positions has, and the first token stands at ``first_position``;
    ``token_types`` is how many kinds of token there are (those of two texts read as one), 0 for none. ``dtype`` is
    what is computed in.
    """

    vocab_size: int
    positions: int
    transformer: TransformerConfig
    token_types: int = 0
    first_position: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderConfig: {name} must be at least 1; got {getattr(self, name)}")

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        return self.positions - self.first_position


class Encoder(nnx.Module):
    """A vector for each token, from all of its text.

    ``tokens int32[b, t] -> [b, t, embed]``; tokens from ``lengths int32[b]`` on are padding. `vectors` makes one of
    each text.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from m2ml.models import Encoder, EncoderConfig, TransformerConfig
    >>> config = EncoderConfig(11, 16, TransformerConfig(embed_dim=8, heads=2, mlp_dim=12, layers=1))
    >>> encoder = Encoder(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(lambda tokens: encoder(tokens), jnp.zeros((2, 5), jnp.int32)).shape
    (2, 5, 8)
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed = config.transformer.embed_dim
        self.tokens = Table(config.vocab_size, embed, rngs=rngs)
        self.positions = Table(config.positions, embed, rngs=rngs)
        self.token_types = Table(config.token_types, embed, rngs=rngs) if config.token_types else None
        self.norm = LayerNorm(embed, epsilon=config.transformer.norm_eps)
        self.layers = Transformer(config.transformer, rngs=rngs)

    def __call__(self, tokens: Array, lengths: Array | None = None, token_types: Array | None = None, /) -> Array:
        config, length = self.config, tokens.shape[1]
        if length > config.context:
            raise ValueError(f"a text has {length} tokens, and this model reads {config.context}")
        dtype = jnp.dtype(config.dtype)
        first = config.first_position
        x = self.tokens(tokens, dtype) + value_of(self.positions.weight)[first : first + length].astype(dtype)
        if self.token_types is not None:
            x = x + (
                self.token_types(jnp.zeros(1, jnp.int32), dtype)
                if token_types is None
                else self.token_types(token_types, dtype)
            )
        return self.layers(self.norm(x), lengths)

    def vectors(self, tokens: Array, lengths: Array, /, *, pooling: str = "mean", normalise: bool = True) -> Array:
        """One vector for each text, float32 ``[b, embed]``: the mean over its tokens, or its first (``"cls"``).

        ``normalise`` makes each of length 1.
        """
        x = self(tokens, lengths).astype(jnp.float32)
        if pooling == "cls":
            pooled = x[:, 0]
        else:
            real = (jnp.arange(tokens.shape[1]) < lengths[:, None])[..., None]
            pooled = jnp.where(real, x, 0).sum(1) / jnp.maximum(lengths, 1)[:, None]
        return of_length_one(pooled) if normalise else pooled


def _bert(s: Settings) -> EncoderConfig:
    kind = s.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise s.wrong("position_embedding_type", kind, "m2ml reads encoders with absolute positions")
    for name in ("is_decoder", "add_cross_attention"):
        if s.get(name):
            raise s.wrong(name, True, "m2ml reads encoders without it")
    transformer = TransformerConfig(
        embed_dim=s.integer("hidden_size"),
        heads=s.integer("num_attention_heads"),
        mlp_dim=s.integer("intermediate_size"),
        layers=s.integer("num_hidden_layers", most=MOST_LAYERS),
        norm_eps=s.number("layer_norm_eps", 1e-12),
        activation=activation_of(s, "hidden_act"),
    )
    positions = s.integer("max_position_embeddings", 512)
    return EncoderConfig(s.integer("vocab_size"), positions, transformer, token_types=s.integer("type_vocab_size", 2))


def _roberta(s: Settings) -> EncoderConfig:
    """Its positions are counted from the one after the padding token's number."""
    return replace(_bert(s), first_position=int(s.number("pad_token_id", 1)) + 1)


def _distilbert(s: Settings) -> EncoderConfig:
    transformer = TransformerConfig(
        embed_dim=s.integer("dim"),
        heads=s.integer("n_heads"),
        mlp_dim=s.integer("hidden_dim"),
        layers=s.integer("n_layers", most=MOST_LAYERS),
        activation=activation_of(s, "activation"),
    )
    return EncoderConfig(s.integer("vocab_size"), s.integer("max_position_embeddings", 512), transformer)


_EMBEDDINGS: dict[str, Theirs] = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}
_BERT_LAYER: dict[str, Theirs] = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER: dict[str, Theirs] = {
    "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}
_BERT_NAMES = {
    **_EMBEDDINGS,
    "token_types": "embeddings.token_type_embeddings",
    **layer_names("layers.blocks.{}.", "encoder.layer.{}.", _BERT_LAYER),
}

#: Heads of other tasks, which encoding does not need.
_HEADS = ("pooler.", "cls.", "classifier.", "pre_classifier.", "lm_head.", "vocab_", "qa_outputs.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

FAMILIES = {
    "bert": Family(Encoder, _bert, _BERT_NAMES, prefixes=("bert.",), heads=_HEADS, buffers=_BUFFERS),
    "distilbert": Family(
        Encoder,
        _distilbert,
        {**_EMBEDDINGS, **layer_names("layers.blocks.{}.", "transformer.layer.{}.", _DISTILBERT_LAYER)},
        prefixes=("distilbert.",),
        heads=_HEADS,
        buffers=_BUFFERS,
    ),
}
FAMILIES |= dict.fromkeys(
    ("roberta", "xlm-roberta"),
    Family(Encoder, _roberta, _BERT_NAMES, prefixes=("roberta.",), heads=_HEADS, buffers=_BUFFERS),
)
