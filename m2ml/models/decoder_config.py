"""What a `Decoder` is made of: sizes, norms, positions and windows, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NORMS = ("rms", "rms_plus_one", "layer")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
QK_NORMS = (None, "head", "all")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the first ``dims`` dimensions of a head turn; ``scaling`` is Hugging Face's, as sorted items.

    ``factors`` divide the frequencies, one each; with room for more than ``original`` tokens the ``long_factors`` do.
    ``magnitude`` multiplies what turns, beside that of the scaling.
    """

    dims: int
    base: float = 10000.0
    scaling: tuple[tuple[str, Any], ...] = ()
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original: int = 0
    magnitude: float = 1.0

    def factors_for(self, room: int) -> tuple[float, ...]:
        """What divides the frequencies where there is room for so many tokens."""
        return self.long_factors if self.long_factors and room > self.original else self.factors


@dataclass(frozen=True)
class LayerConfig:
    """What differs between the layers of one model.

    ``window``: a position sees fewer than so many positions back, its own counted; None for all. ``rope``: None leaves
    queries and keys as they are. ``sparse``: the MLP is one of experts.
    """

    window: int | None = None
    rope: Rope | None = None
    sparse: bool = False


@dataclass(frozen=True)
class ExpertsConfig:
    """``count`` gated MLPs of width ``mlp_dim``, of which each token takes the ``chosen`` likeliest.

    ``normalised`` divides their probabilities by their sum.
    """

    count: int
    chosen: int
    mlp_dim: int
    normalised: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model; `m2ml.models.architectures` makes one from a checkpoint's own configuration.

    ``blocks`` has an entry for each layer, ``context`` is the longest sequence the model was made for. ``norm``:
    ``"rms"``, ``"rms_plus_one"`` (the weight is stored less 1) or ``"layer"``; norms stand before each sublayer
    (``pre_norms``), after it (``post_norms``) or both. ``parallel``: attention and MLP read the same input.
    ``qk_norm`` normalises each head's queries and keys, or all heads together. ``learned_positions`` are added to the
    embeddings. Biases are named by where they stand. ``dtype`` is what is computed in. Raises ValueError for what does
    not fit together.
    """

    vocab_size: int
    embed_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    context: int
    blocks: tuple[LayerConfig, ...]
    norm: str = "rms"
    norm_eps: float = 1e-6
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    qk_norm: str | None = None
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    learned_positions: bool = False
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embed_scale: float = 1.0
    tied: bool = True
    experts: ExpertsConfig | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        for name in ("vocab_size", "embed_dim", "heads", "kv_heads", "head_dim", "mlp_dim", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig: {name} must be at least 1; got {getattr(self, name)}")
        if not self.blocks:
            raise ValueError("DecoderConfig: blocks must have an entry for each layer; got none")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"DecoderConfig: heads must be a multiple of kv_heads; got {self.heads} and {self.kv_heads}"
            )
        for name, known in (("norm", NORMS), ("activation", ACTIVATIONS), ("qk_norm", QK_NORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"DecoderConfig: {name} must be one of {known}; got {getattr(self, name)!r}")
        for i, block in enumerate(self.blocks):
            self._check_block(i, block)

    def _check_block(self, i: int, block: LayerConfig) -> None:
        if block.window is not None and block.window < 1:
            raise ValueError(f"DecoderConfig: the window of layer {i} must be at least 1; got {block.window}")
        if block.rope and (block.rope.dims % 2 or not 0 < block.rope.dims <= self.head_dim):
            raise ValueError(
                f"DecoderConfig: rope of layer {i} turns {block.rope.dims} dimensions of heads of {self.head_dim};"
                " it must be an even number of at most those"
            )
        if block.rope and block.rope.factors and len(block.rope.factors) != block.rope.dims // 2:
            raise ValueError(
                f"DecoderConfig: rope of layer {i} has {len(block.rope.factors)} factors for"
                f" {block.rope.dims // 2} frequencies"
            )
        if block.sparse and self.experts is None:
            raise ValueError(f"DecoderConfig: layer {i} is sparse, but there are no experts")

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of the query, key and value projections."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim
