"""Scores of attention, a block of queries at a time, and what is made of them: weights and log-sum-exp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from m2ml.ops.arguments import wide

Array = jax.Array

#: Queries whose scores exist at a time.
QUERIES = 512


@dataclass(frozen=True)
class Scores:
    """Scores of queries, a block of them at a time, -inf where one may not read a key."""

    queries: int
    keys: int
    causal: bool
    offset: int | None
    window: int | None
    soft_cap: float | None
    scale: float

    @classmethod
    def of(
        cls,
        q: Any,
        k: Any,
        *,
        scale: float | None = None,
        causal: bool = False,
        offset: int | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        **_: Any,
    ) -> Scores:
        """For queries and keys of these shapes and static arguments."""
        default = float(max(q.shape[-1], 1)) ** -0.5
        return cls(q.shape[-3], k.shape[-3], causal, offset, window, soft_cap, default if scale is None else scale)

    @property
    def rows(self) -> int:
        """Queries in a block."""
        return max(min(QUERIES, self.queries), 1)

    def each(self, function: Any, carried: Any) -> tuple[Any, Any]:
        """``function(carried, start) -> (carried, found)`` for each block; ``found[..., rows, heads, n]`` joined."""
        starts = range(0, max(self.queries, 1), self.rows)
        if len(starts) == 1:
            carried, found = function(carried, 0)
        else:
            carried, found = jax.lax.scan(function, carried, jnp.array(starts))
            found = jax.tree.map(lambda x: join(jnp.moveaxis(x, 0, -4), -4), found)
        return carried, jax.tree.map(lambda x: x[..., : self.queries, :, :], found)

    def filled_up(self, x: Array, axis: int = -3) -> Array:
        """``x [..., t, h, n]`` with zeros after the last query, so that blocks are whole."""
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -self.queries % self.rows if self.queries else 1)
        return jnp.pad(x, padding)

    def mask_filled_up(self, mask: Array) -> Array:
        """``mask`` with axes for heads, queries and keys at least, filled up where it has each query's own."""
        mask = mask.reshape(*(1,) * (3 - mask.ndim), *mask.shape)
        return mask if mask.shape[-2] == 1 else self.filled_up(mask, -2)

    def block(self, every: tuple[Array, Array | None], start: Any) -> tuple[Array, Array | None]:
        """Queries and mask of the block that starts there, from all of them, filled up."""
        q, mask = every
        queries = jax.lax.dynamic_slice_in_dim(q, start, self.rows, q.ndim - 3)
        if mask is None or mask.shape[-2] == 1:
            return queries, mask
        return queries, jax.lax.dynamic_slice_in_dim(mask, start, self.rows, mask.ndim - 2)

    def __call__(self, q: Array, k: Array, mask: Array | None, key_lengths: Array | None, start: Any) -> Array:
        """``[*b, g, h / g, rows, s]`` of a block of queries and mask."""
        groups = k.shape[-2]
        scores = jnp.einsum("...tgrd,...sgd->...grts", grouped(wide(q), groups), wide(k)) * self.scale
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        allowed = self._allowed(key_lengths, start)
        if mask is not None:
            heads = (groups, mask.shape[-3] // groups) if mask.shape[-3] > 1 else (1, 1)
            mask = mask.reshape(*mask.shape[:-3], *heads, *mask.shape[-2:])
            scores, allowed = (scores, allowed & mask) if mask.dtype == jnp.bool_ else (scores + mask, allowed)
        return jnp.where(allowed, scores, -jnp.inf)

    def _allowed(self, key_lengths: Array | None, start: Any) -> Array:
        key = jnp.arange(self.keys)
        lengths = self.keys if key_lengths is None else key_lengths[..., None, None, None, None]
        allowed = key < lengths
        place = (
            start + jnp.arange(self.rows)[:, None] + (lengths - self.queries if self.offset is None else self.offset)
        )
        if self.causal:
            allowed = allowed & (key <= place)
        if self.window is not None:
            allowed = allowed & (key > place - self.window) & (key < place + self.window)
        return allowed


def join(x: Array, axis: int) -> Array:
    """``x`` with an axis and the next one as one."""
    shape = list(x.shape)
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return x.reshape(shape)


def grouped(x: Array, groups: int) -> Array:
    """``[..., h, n]`` as ``[..., g, h / g, n]``."""
    return x.reshape(*x.shape[:-2], groups, x.shape[-2] // groups, x.shape[-1])


def weights_of(scores: Array) -> tuple[Array, Array]:
    """The softmax of scores, zeros in a row without keys, and their log-sum-exp."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    powers = jnp.exp(scores - top)
    total = jnp.sum(powers, axis=-1)
    safe = jnp.where(total > 0, total, 1)
    return powers / safe[..., None], jnp.where(total > 0, jnp.log(safe) + top[..., 0], -jnp.inf)


def mixed(weights: Array, v: Array) -> Array:
    """``weights @ v``, ``[*b, rows, h, e]``."""
    return rows_first(jnp.einsum("...grts,...sge->...grte", weights, wide(v)))


def rows_first(x: Array) -> Array:
    """``[..., g, h / g, rows, n]`` as ``[..., rows, h, n]``."""
    return join(jnp.moveaxis(x, -2, -4), -3)


def rows_last(x: Array, groups: int) -> Array:
    """``[..., rows, h, n]`` as ``[..., g, h / g, rows, n]``."""
    return jnp.moveaxis(grouped(x, groups), -4, -2)
