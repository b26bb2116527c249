"""A layer of experts: each token goes through the few gated MLPs that its router finds likeliest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from m2ml.models.decoder_config import DecoderConfig
from m2ml.models.projection import Linear, gate_and_up, project, value_of

Array = jax.Array

#: Up to so many pairs of token and expert per expert, their weights are read pair by pair; beyond, block by block.
PAIRS_PER_EXPERT = 1


class Experts(nnx.Module):
    """``sum over chosen experts of probability * mlp(x)``. ``x[b, t, embed] -> same``.

    ``up`` holds gates and ups of all experts, ``[count, 2 mlp_dim, embed]``, ``down`` ``[count, embed, mlp_dim]``.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        assert config.experts is not None
        self.config, self.experts = config, config.experts
        self.router = Linear(config.embed_dim, config.experts.count, bias=False, rngs=rngs)
        count, width = config.experts.count, config.experts.mlp_dim
        normal = nnx.initializers.normal(0.02)
        self.up = nnx.Param(normal(rngs.params(), (count, 2 * width, config.embed_dim), jnp.float32))
        self.down = nnx.Param(normal(rngs.params(), (count, config.embed_dim, width), jnp.float32))

    def __call__(self, x: Array, /) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        chosen, probabilities = self._route(rows)
        up, down = value_of(self.up), value_of(self.down)
        if rows.shape[0] * self.experts.chosen <= PAIRS_PER_EXPERT * self.experts.count:
            mixed = self._pair_by_pair(rows, chosen, probabilities, up, down)
        else:
            mixed = self._block_by_block(rows, chosen, probabilities, up, down)
        return mixed.astype(x.dtype).reshape(x.shape)

    def _route(self, rows: Array) -> tuple[Array, Array]:
        """Which experts each row takes, and how much of each: ``[rows, chosen]`` twice."""
        every = jax.nn.softmax(self.router(rows).astype(jnp.float32), axis=-1)
        probabilities, chosen = jax.lax.top_k(every, self.experts.chosen)
        if self.experts.normalised:
            probabilities = probabilities / jnp.sum(probabilities, axis=-1, keepdims=True)
        return chosen, probabilities.astype(rows.dtype)

    def _mlp(self, x: Array, up: Any, down: Any) -> Array:
        return project(gate_and_up(project(x, up), self.config), down)

    def _pair_by_pair(self, rows: Array, chosen: Array, probabilities: Array, up: Any, down: Any) -> Array:
        pairs, flat = jnp.repeat(rows, self.experts.chosen, axis=0)[:, None], chosen.reshape(-1)
        taken = jax.tree.map(lambda weight: weight[flat], (up, down))
        each = jax.vmap(self._mlp)(pairs, *taken).reshape(*chosen.shape, -1)
        return jnp.sum(each * probabilities[..., None], axis=1)

    def _block_by_block(self, rows: Array, chosen: Array, probabilities: Array, up: Any, down: Any) -> Array:
        """Pairs in the order of their experts, in blocks of one expert each, the last of which may have room left.

        At most twice the pairs' work, however unequally they are dealt, in arrays whose sizes do not depend on it.
        """
        count, pairs = self.experts.count, chosen.size
        size = -(-pairs // count)
        flat = chosen.reshape(-1)
        order = jnp.argsort(flat, stable=True)
        held = jnp.bincount(flat, length=count)
        blocks = -(-held // size)
        last = jnp.cumsum(blocks)
        number = jnp.arange(pairs // size + count)  # each expert leaves room in one block at most
        expert = jnp.minimum(jnp.sum(number[:, None] >= last, axis=1), count - 1)
        nth = number - (last - blocks)[expert]
        place = (nth * size)[:, None] + jnp.arange(size)
        real = (number < last[-1])[:, None] & (place < held[expert][:, None])
        pair = order[jnp.where(real, (jnp.cumsum(held) - held)[expert][:, None] + place, 0)]
        share = jnp.where(real, probabilities.reshape(-1)[pair], 0)

        def add(total: Array, block: Any) -> tuple[Array, None]:
            number, pair, share = block
            taken = jax.tree.map(lambda weight: weight[number], (up, down))
            row = pair // self.experts.chosen
            return total.at[row].add(self._mlp(rows[row], *taken) * share[:, None]), None

        return jax.lax.scan(add, jnp.zeros_like(rows), (expert, pair, share))[0]
