"""Images as sequences: a vector for each square patch, and learned positions for grids of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m2ml.models.projection import value_of

Array = jax.Array
Pair = tuple[int, int]


class PatchEmbedding(nnx.Module):
    """One vector for each patch, row by row: ``images[b, height, width, channels] -> [b, patches, embed]``.

    `grid` keeps rows and columns apart. What is left over at the right and at the bottom is not looked at, as in a
    convolution with this stride.
    """

    def __init__(self, patch: Pair, channels: int, embed_dim: int, *, bias: bool, rngs: nnx.Rngs) -> None:
        shape = (*patch, channels, embed_dim)
        self.weight = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((embed_dim,), jnp.float32)) if bias else None

    def __call__(self, images: Array, /) -> Array:
        y = self.grid(images)
        return y.reshape(len(y), -1, y.shape[-1])

    def grid(self, images: Array, /) -> Array:
        """``[b, rows, columns, embed]``."""
        weight = value_of(self.weight).astype(images.dtype)
        (high, wide), (batch, height, width, channels) = weight.shape[:2], images.shape
        rows, columns = height // high, width // wide
        if min(rows, columns) < 1:
            raise ValueError(f"an image of {height}x{width} is smaller than a patch of {high}x{wide}")
        cut = images[:, : rows * high, : columns * wide].reshape(batch, rows, high, columns, wide, channels)
        flat = cut.swapaxes(2, 3).reshape(batch, rows, columns, high * wide * channels)
        y = flat @ weight.reshape(-1, weight.shape[-1])
        return y if self.bias is None else y + value_of(self.bias).astype(y.dtype)


def in_order(x: Array, first: Array, positions: Array, old: Pair, new: Pair, /) -> Array:
    """``[b, 1 + patches, embed]``: ``first`` and the patches ``x``, in rows and columns ``new``, with their places.

    ``positions`` are float32 ``[1 + old rows * old columns, embed]``; those of the patches are resized.
    """
    first = jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, x.shape[-1]))
    of_patches = resized(positions[1:], old, new)
    return jnp.concatenate([first, x], axis=1) + jnp.concatenate([positions[:1], of_patches]).astype(x.dtype)


def resized(positions: Array, old: Pair, new: Pair, /) -> Array:
    """Positions ``[old rows * old columns, embed]`` for another grid, by cubic interpolation as PyTorch's."""
    if old == new:
        return positions
    rows, columns = (jnp.asarray(_cubic(a, b), positions.dtype) for a, b in zip(old, new, strict=True))
    grid = positions.reshape(*old, -1)
    return jnp.einsum("hr,wc,rce->hwe", rows, columns, grid).reshape(new[0] * new[1], -1)


def _cubic(old: int, new: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The matrix ``[new, old]`` of cubic convolution with a = -0.75; beyond the edge the last value goes on."""
    found = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        first = int(np.floor(place)) - 1
        for j in range(first, first + 4):
            found[i, min(max(j, 0), old - 1)] += _weight(abs(place - j))
    return found


def _weight(distance: float, a: float = -0.75) -> float:
    """Keys' kernel (1981)."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1
    return ((distance - 5) * distance + 8) * distance * a - 4 * a if distance < 2 else 0.0
