"""A small convolutional classifier: 3x3 convolution, ReLU and 2x2 max-pooling, repeated; then two dense layers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.layers import dropout, max_pool, modules


@dataclass(frozen=True)
class CNNConfig:
    """Sizes of a `CNN`.

    One convolution stage per entry of ``features``, each halving height and width; ``dtype`` is what is computed in
    (parameters are always float32). Raises ValueError for sizes that do not fit together.
    """

    height: int = 28
    width: int = 28
    channels: int = 1
    classes: int = 10
    features: tuple[int, ...] = (16, 32)
    hidden_dim: int = 64
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        for name in ("height", "width", "channels", "classes", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"CNNConfig: {name} must be at least 1; got {getattr(self, name)}")
        if not self.features or min(self.features) < 1:
            raise ValueError(f"CNNConfig: features must be one or more sizes of at least 1; got {self.features}")
        if min(self.pooled) < 1:
            raise ValueError(
                f"CNNConfig: an image of {self.height}x{self.width} cannot be halved {len(self.features)} times;"
                " use fewer features"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CNNConfig: dropout must be at least 0 and below 1; got {self.dropout}")

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width after the last stage."""
        return self.height >> len(self.features), self.width >> len(self.features)


class CNN(nnx.Module):
    """Logits of the classes of each image.

    ``images float32[batch, height, width, channels] -> float32[batch, classes]``; ``key`` draws the dropout mask of the
    hidden layer, and without one nothing is dropped.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from m2ml.models import CNN, CNNConfig
    >>> model = CNN(CNNConfig(height=8, width=8), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(self, config: CNNConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dtype = jnp.dtype(config.dtype)
        sizes = zip((config.channels, *config.features), config.features, strict=False)
        self.convolutions = modules([nnx.Conv(i, o, (3, 3), dtype=dtype, rngs=rngs) for i, o in sizes])
        flat = config.pooled[0] * config.pooled[1] * config.features[-1]
        self.hidden = nnx.Linear(flat, config.hidden_dim, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(config.hidden_dim, config.classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, /, *, key: jax.Array | None = None) -> jax.Array:
        x = images
        for convolution in self.convolutions:
            x = max_pool(nnx.relu(convolution(x)))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        x = dropout(x, rate=self.config.dropout, key=key)
        return self.head(x).astype(jnp.float32)
