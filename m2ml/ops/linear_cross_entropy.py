"""Cross-entropy of a linear layer's softmax, worked out on some rows of logits at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_one_of, require_positive, wide
from m2ml.ops.inputs import normal
from m2ml.ops.softmax_cross_entropy import (
    check_cross_entropy,
    counted,
    labels_of,
    log_sum_exp,
    logit_gradients,
    token_losses,
)

Array = jax.Array

#: Logits of one block of rows: 32 MiB of float32.
LOGITS = 1 << 23

#: Rows of the weight whose gradient is added to at a time: XLA makes the product before it adds it.
WEIGHT_ROWS = 4096


@op(shapes="hidden[*b n], weight[v n], labels[*b] -> [...]")
def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    labels: Array,
    /,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    rows: int | None = None,
    with_gradients: bool = False,
) -> Any:
    """``softmax_cross_entropy(hidden @ weight.T, labels)`` of which never more than ``rows`` rows of logits exist.

    ``hidden`` is ``[*b, n]``, ``weight`` ``[v, n]`` (an embedding table, PyTorch's layout of a linear layer; pass the
    transposed kernel of a Flax one), ``labels`` integers ``[*b]``; ``soft_cap`` makes each logit
    ``soft_cap * tanh(logit / soft_cap)``. The other arguments are those of `softmax_cross_entropy`. ``reduction`` is
    ``"mean"`` over the tokens that are not ignored (0 where all are, PyTorch's is NaN), ``"sum"``, or ``"none"`` for
    losses ``[*b]``. ``rows`` is about 8,388,608 / v unless given. Half precision is worked out in float32; losses are
    not rounded back, gradients once.

    A reduced loss has its gradients worked out while its logits are there (Hsu et al., Liger Kernel, 2024), which
    ``with_gradients`` returns: ``(loss, d_hidden, d_weight)`` in float32. For those of ``"none"`` the
    logits are worked out again.
    """
    _check(hidden, weight, labels, reduction, label_smoothing, rows)
    if soft_cap is not None:
        require_positive("linear_cross_entropy", soft_cap=soft_cap)
    loss = _Loss(ignore_index, label_smoothing, z_loss, soft_cap, rows)
    share = jnp.where(labels == ignore_index, 0, 1).astype(wide(hidden).dtype)
    if reduction == "mean":
        share = share / jnp.maximum(jnp.sum(share), 1)
    if with_gradients and reduction != "none":
        losses, d_hidden, d_weight = loss.gradients(hidden, weight, labels, share)
        return jnp.sum(losses * share), d_hidden, d_weight
    losses = loss.losses(hidden, weight, labels)
    return losses if reduction == "none" else jnp.sum(losses * share)


def _check(hidden: Array, weight: Array, labels: Array, reduction: str, smoothing: float, rows: int | None) -> None:
    name = "linear_cross_entropy"
    require_floating(name, hidden=hidden, weight=weight)
    check_cross_entropy(name, weight.shape[0], labels, smoothing)
    require_one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    require(name, rows is None or rows > 0, f"rows is {rows}; it must be at least 1 or None")


@dataclass(frozen=True)
class _Loss:
    """The loss of tokens and its gradients, one block of rows after the other."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    soft_cap: float | None
    rows: int | None

    def losses(self, hidden: Array, weight: Array, labels: Array) -> Array:
        """Losses ``[*b]``; JAX's own gradient of them works each block out again."""

        @jax.checkpoint
        def of_block(block: tuple[Array, ...]) -> Array:
            logits = self._logits(block[0], weight)
            return self._token_losses(logits, block[1], log_sum_exp(logits))

        blocks = self._blocks(
            weight, (hidden.reshape(-1, hidden.shape[-1]), 0), (labels.reshape(-1), self.ignore_index)
        )
        return jax.lax.map(of_block, blocks).reshape(-1)[: labels.size].reshape(labels.shape)

    def gradients(self, hidden: Array, weight: Array, labels: Array, given: Array) -> tuple[Array, Array, Array]:
        """Losses, and the gradients of ``sum(given * losses)`` for hidden and weight in float32."""

        def of_block(d_weight: Array, block: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            rows, targets, of_loss = block
            logits = self._logits(rows, weight)
            lse = log_sum_exp(logits)
            of_loss = jnp.where(counted(targets, weight.shape[0], self.ignore_index), of_loss, 0)
            d = logit_gradients(logits, targets, lse, of_loss, 0, self.label_smoothing, self.z_loss)
            if self.soft_cap is not None:
                d = d * (1 - (logits / self.soft_cap) ** 2)
            found = self._token_losses(logits, targets, lse), jnp.matmul(d, wide(weight))
            return _add_product(d_weight, d, wide(rows)), found

        flat = hidden.reshape(-1, hidden.shape[-1])
        blocks = self._blocks(weight, (flat, 0), (labels.reshape(-1), self.ignore_index), (given.reshape(-1), 0))
        start = jnp.zeros(weight.shape, wide(hidden).dtype)
        d_weight, (losses, d_hidden) = jax.lax.scan(of_block, start, blocks)
        d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[: labels.size].reshape(hidden.shape)
        return losses.reshape(-1)[: labels.size].reshape(labels.shape), d_hidden, d_weight

    def _logits(self, rows: Array, weight: Array) -> Array:
        raw = jnp.matmul(wide(rows), wide(weight).T)
        return raw if self.soft_cap is None else self.soft_cap * jnp.tanh(raw / self.soft_cap)

    def _token_losses(self, logits: Array, labels: Array, lse: Array) -> Array:
        return token_losses(logits, labels, lse, self.ignore_index, self.label_smoothing, self.z_loss)

    def _blocks(self, weight: Array, *arrays: tuple[Array, int]) -> tuple[Array, ...]:
        """Each array ``[tokens, ...]`` as ``[blocks, rows, ...]``, filled up with the number beside it."""
        tokens = arrays[0][0].shape[0]
        most = self.rows or max(1, LOGITS // weight.shape[0])
        blocks = max(1, -(-tokens // most))
        rows = -(-tokens // blocks)

        def split(x: Array, fill: int) -> Array:
            padding = [(0, blocks * rows - tokens), *[(0, 0)] * (x.ndim - 1)]
            return jnp.pad(x, padding, constant_values=fill).reshape(blocks, rows, *x.shape[1:])

        return tuple(split(x, fill) for x, fill in arrays)


def _add_product(total: Array, d: Array, rows: Array) -> Array:
    """``total + d.T @ rows``, `WEIGHT_ROWS` of it at a time."""
    size = total.shape[0]
    whole = size // WEIGHT_ROWS

    def add(start: Any, count: int, total: Array) -> Array:
        part = jnp.matmul(jax.lax.dynamic_slice_in_dim(d, start, count, axis=1).T, rows)
        part = part + jax.lax.dynamic_slice_in_dim(total, start, count)
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, 0)

    if whole:
        total = jax.lax.fori_loop(0, whole, lambda i, so_far: add(i * WEIGHT_ROWS, WEIGHT_ROWS, so_far), total)
    return add(whole * WEIGHT_ROWS, size % WEIGHT_ROWS, total) if size % WEIGHT_ROWS else total


@linear_cross_entropy.defbackward(with_gradients=True)
def backward(args: Any, outputs: Sequence[Any], cotangents: Sequence[Any], /, **static: Any) -> Any:
    """The saved gradients of a reduced loss times its cotangent; otherwise the logits once more."""
    hidden, weight, labels = args
    if static["reduction"] != "none" and static["with_gradients"]:  # the gradients have cotangents: a second derivative
        _, pull = jax.vjp(lambda h, w: linear_cross_entropy.definition(h, w, labels, **static), hidden, weight)
        return *pull(tuple(cotangents)), None
    if static["reduction"] != "none":
        return outputs[1] * cotangents[0], outputs[2] * cotangents[0], None
    names = ("ignore_index", "label_smoothing", "z_loss", "soft_cap", "rows")
    _, d_hidden, d_weight = _Loss(*(static[n] for n in names)).gradients(hidden, weight, labels, cotangents[0])
    return d_hidden, d_weight, None


def _sample(name: str, shape: Sequence[int], size: int, /, *, scale: float = 1.0, **static: Any) -> Sample:
    """Random hidden states ``shape`` and a vocabulary of ``size``, every third label ignored if one is."""
    seed = sum(map(ord, name))
    labels = labels_of(shape[:-1], size, seed, static.get("ignore_index"))
    return Sample(name, (normal(shape, seed, scale), normal((size, shape[-1]), seed + 1, 0.5), labels), static)


@linear_cross_entropy.give_samples
def samples() -> Iterator[Sample]:
    yield _sample("plain", (6, 5), 9)
    yield _sample("three tokens", (3, 2), 2, rows=2)
    yield _sample("sum", (3, 4), 7, reduction="sum")
    yield _sample("none", (5, 4), 6, reduction="none")
    yield _sample("blocks of two rows", (5, 4), 6, rows=2)
    yield _sample("blocks of one row, summed", (3, 4), 6, rows=1, reduction="sum")
    yield _sample("blocks, not reduced", (7, 3), 5, rows=3, reduction="none")
    yield _sample("ignored", (7, 3), 5, rows=2, ignore_index=-100)
    yield _sample("ignored 1, not reduced", (7, 3), 5, rows=4, ignore_index=1, reduction="none")
    yield _sample("all ignored", (1, 8), 5, ignore_index=3)
    yield _sample("smooth", (4, 5), 7, label_smoothing=0.2, ignore_index=-1)
    yield _sample("z loss", (4, 5), 7, z_loss=0.05, reduction="sum")
    yield _sample("soft cap", (4, 5), 7, scale=4.0, soft_cap=3.0)
    every = {"label_smoothing": 0.1, "z_loss": 0.2, "soft_cap": 2.0, "ignore_index": -1, "rows": 2}
    yield _sample("everything", (2, 2, 3), 5, **every)
    yield _sample("everything, not reduced", (2, 2, 3), 5, **every, reduction="none")
    yield _sample("one token", (8,), 33)
    yield _sample("one entry", (3, 8), 1, reduction="none")
    yield _sample("no tokens", (0, 4), 3, reduction="sum")
    yield _sample("large", (3, 31), 17, scale=300.0, reduction="none")
    yield _sample("wide vocabulary", (2, 3), 257)


def _one(op: Any, *args: Any, **static: Any) -> Any:
    return np.asarray(op(*args, **static), float)


@linear_cross_entropy.law
def the_size_of_blocks_does_not_matter(op: Any, hidden: Any, weight: Any, labels: Any, **static: Any) -> None:
    few, more = (_one(op, hidden, weight, labels, **(static | {"rows": rows})) for rows in (2, None))
    np.testing.assert_allclose(few, more, rtol=1e-5, atol=1e-6)


@linear_cross_entropy.law
def the_mean_is_over_the_tokens_that_count(op: Any, hidden: Any, weight: Any, labels: Any, **static: Any) -> None:
    if labels.size:
        ignored = int(np.reshape(labels, -1)[0])
        static = static | {"ignore_index": ignored}
        count = max(np.count_nonzero(labels != ignored), 1)
        total = _one(op, hidden, weight, labels, **(static | {"reduction": "sum"}))
        mean = _one(op, hidden, weight, labels, **(static | {"reduction": "mean"}))
        np.testing.assert_allclose(mean * count, total, rtol=1e-5, atol=1e-6)


@linear_cross_entropy.law
def no_hidden_state_costs_the_logarithm_of_the_vocabulary(
    op: Any, hidden: Any, weight: Any, labels: Any, **static: Any
) -> None:
    smoothing = static.get("label_smoothing", 0.0)
    inside = np.clip(labels, 0, weight.shape[0] - 1)
    cost = _one(op, np.zeros_like(hidden), weight, inside, reduction="none", label_smoothing=smoothing)
    np.testing.assert_allclose(cost, np.log(weight.shape[0]), rtol=1e-6, atol=1e-7)


@linear_cross_entropy.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    hidden, weight = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32), np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    cost = op(hidden, weight, np.array([0, 1], np.int32), reduction="none")  # logits 1, 4 and 3, 0
    np.testing.assert_allclose(cost, [3 + np.log1p(np.exp(-3)), 3 + np.log1p(np.exp(-3))], rtol=1e-6)


@linear_cross_entropy.give_cost
def cost(hidden: Any, weight: Any, labels: Any, **static: Any) -> tuple[int, int]:
    """The product, and what is read once; with gradients two products more, and they are written."""
    gradients = static.get("with_gradients", False) and static.get("reduction", "mean") != "none"
    flops = 2 * hidden.size * weight.shape[0] * (3 if gradients else 1)
    moved = (hidden.size + weight.size) * (hidden.dtype.itemsize + (4 if gradients else 0))
    return flops, moved + labels.size * labels.dtype.itemsize


@linear_cross_entropy.fault
def mean_over_all_tokens(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    found = linear_cross_entropy.definition(hidden, weight, labels, **static)
    counts = jnp.mean((labels != static["ignore_index"]).astype(jnp.float32))
    return found * counts if static["reduction"] == "mean" else found


@linear_cross_entropy.fault
def what_fills_the_last_block_counts(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    found = linear_cross_entropy.definition(hidden, weight, labels, **static)
    filled = -(-labels.size // (static["rows"] or 1)) * (static["rows"] or 1)
    return found * (labels.size / max(filled, 1)) if static["reduction"] == "mean" else found


@linear_cross_entropy.fault
def last_token_dropped(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    """A token beyond a multiple of two costs nothing."""
    place = jnp.arange(labels.size).reshape(labels.shape)
    dropped = jnp.where(place < labels.size - labels.size % 2, labels, static["ignore_index"])
    return linear_cross_entropy.definition(hidden, weight, dropped, **static)


@linear_cross_entropy.fault
def soft_cap_ignored(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    return linear_cross_entropy.definition(hidden, weight, labels, **(static | {"soft_cap": None}))


@linear_cross_entropy.fault
def smoothing_ignored(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    return linear_cross_entropy.definition(hidden, weight, labels, **(static | {"label_smoothing": 0.0}))


@linear_cross_entropy.fault
def z_loss_ignored(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    return linear_cross_entropy.definition(hidden, weight, labels, **(static | {"z_loss": 0.0}))


@linear_cross_entropy.fault
def ignore_index_ignored(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    inside = jnp.where(labels == static["ignore_index"], 0, labels)
    return linear_cross_entropy.definition(hidden, weight, inside, **(static | {"ignore_index": -7}))


@linear_cross_entropy.fault
def the_next_label(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    moved = jnp.where(labels == static["ignore_index"], labels, (labels + 1) % weight.shape[0])
    return linear_cross_entropy.definition(hidden, weight, moved, **static)


@linear_cross_entropy.fault
def last_entry_left_out(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    """The vocabulary ends at a multiple of two."""
    size = max(weight.shape[0] - weight.shape[0] % 2, 1)
    inside = jnp.where(labels == static["ignore_index"], labels, jnp.minimum(labels, size - 1))
    return linear_cross_entropy.definition(hidden, weight[:size], inside, **static)


@linear_cross_entropy.fault
def half_precision_logits(hidden: Array, weight: Array, labels: Array, /, **static: Any) -> Any:
    rounded = hidden.astype(jnp.bfloat16).astype(jnp.float32)
    return linear_cross_entropy.definition(rounded, weight, labels, **static)
