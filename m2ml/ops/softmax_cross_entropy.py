"""Cross-entropy of softmax against integer labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_integers, wide
from m2ml.ops.inputs import normal

Array = jax.Array


@op(shapes="logits[*b v], labels[*b] -> [*b], [*b]")
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    /,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_lse: bool = False,
) -> Any:
    """``lse - sum(target * logits) + z_loss * lse**2`` per token, where ``lse = log(sum(exp(logits)))``.

    ``logits`` are ``[*b, v]``, ``labels`` integers ``[*b]``; the losses are ``[*b]``, not reduced, in float32 or, for
    float64 logits, float64: half precision is worked out in float32 and not rounded back. With ``return_lse`` they
    come with ``lse``, in the same shape and dtype.

    The target is ``1 - label_smoothing`` at the label plus ``label_smoothing / v`` everywhere (Szegedy et al., 2016),
    as PyTorch has it. ``z_loss`` keeps ``lse`` near 0 (PaLM, 2022). A token whose label is ``ignore_index`` costs 0;
    its ``lse`` is what it is. Any other label outside ``0 .. v - 1`` gives NaN, where PyTorch raises.
    """
    require_floating("softmax_cross_entropy", logits=logits)
    check_cross_entropy("softmax_cross_entropy", logits.shape[-1], labels, label_smoothing)
    logits = wide(logits)
    lse = log_sum_exp(logits)
    losses = token_losses(logits, labels, lse, ignore_index, label_smoothing, z_loss)
    return (losses, lse) if return_lse else losses


def check_cross_entropy(name: str, vocabulary: int, labels: Array, label_smoothing: float) -> None:
    """Raise TypeError or ValueError for labels that are not integers, no vocabulary, smoothing outside 0 to 1."""
    require_integers(name, labels=labels)
    require(name, vocabulary > 0, "v is 0; a vocabulary has at least one entry")
    require(name, 0 <= label_smoothing <= 1, f"label_smoothing is {label_smoothing}; it must be from 0 to 1")


def log_sum_exp(x: Array) -> Array:
    """``log(sum(exp(x)))`` over the last axis."""
    top = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.log(jnp.sum(jnp.exp(x - top), axis=-1)) + top[..., 0]


def token_losses(
    logits: Array, labels: Array, lse: Array, ignore_index: int, label_smoothing: float, z_loss: float
) -> Array:
    """The loss of each token from its logits and their ``lse``."""
    size = logits.shape[-1]
    place = jnp.clip(labels, 0, size - 1)[..., None]
    expected = jnp.take_along_axis(logits, place, axis=-1)[..., 0]
    if label_smoothing:
        expected = (1 - label_smoothing) * expected + label_smoothing * jnp.mean(logits, axis=-1)
    losses = lse - expected + z_loss * lse * lse
    losses = jnp.where((labels >= 0) & (labels < size), losses, jnp.nan)
    return jnp.where(labels == ignore_index, 0, losses)


def logit_gradients(
    logits: Array, labels: Array, lse: Array, of_loss: Array, of_lse: Any, label_smoothing: float, z_loss: float
) -> Array:
    """The gradient for logits ``[*b, v]`` from cotangents of losses, 0 where a token does not count, and of lse."""
    size = logits.shape[-1]
    of_lse = of_loss * (1 + 2 * z_loss * lse) + of_lse
    hot = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    target = jnp.where(hot, 1 - label_smoothing, 0.0) + label_smoothing / size
    return jnp.exp(logits - lse[..., None]) * of_lse[..., None] - target.astype(logits.dtype) * of_loss[..., None]


def counted(labels: Array, size: int, ignore_index: int) -> Array:
    """Whether a token has a gradient: its label is in the vocabulary and not ``ignore_index``."""
    return (labels >= 0) & (labels < size) & (labels != ignore_index)


@softmax_cross_entropy.defbackward(return_lse=True)
def backward(args: Any, outputs: Sequence[Any], cotangents: Sequence[Any], /, **static: Any) -> Any:
    """``softmax(logits) * (g * (1 + 2 z_loss lse) + g_lse) - g * target``; the softmax comes from the saved lse."""
    (logits, labels), (_, lse) = args, outputs
    counts = counted(labels, logits.shape[-1], static["ignore_index"])
    of_loss, of_lse = jnp.where(counts, cotangents[0], 0), cotangents[1] if static["return_lse"] else 0
    return logit_gradients(
        wide(logits), labels, lse, of_loss, of_lse, static["label_smoothing"], static["z_loss"]
    ), None


def labels_of(shape: Sequence[int], size: int, seed: int = 0, ignored: int | None = None) -> Any:
    """Random int32 labels below ``size``; with ``ignored``, every third token has that label."""
    labels = np.random.default_rng(seed).integers(0, size, tuple(shape)).astype(np.int32)
    if ignored is not None:
        labels.reshape(-1)[::3] = ignored
    return labels


@softmax_cross_entropy.give_samples
def samples() -> Iterator[Sample]:
    for size in (1, 2, 7, 8, 33, 257):
        yield Sample(f"v={size}", (normal((3, size), size), labels_of((3,), size, 1)))
    yield Sample("no leading axis", (normal((5,), 1), np.int32(4)))
    yield Sample("two leading axes", (normal((2, 3, 9), 2), labels_of((2, 3), 9)), {"return_lse": True})
    yield Sample("no tokens", (normal((0, 9)), labels_of((0,), 9)))
    yield Sample("nine tokens", (normal((9, 5), 8), labels_of((9,), 5, 7)), {"return_lse": True})
    yield Sample("ignored", (normal((7, 9), 3), labels_of((7,), 9, 2, -100)), {"return_lse": True})
    yield Sample("ignored 0", (normal((7, 9), 4), labels_of((7,), 9, 3, 0)), {"ignore_index": 0})
    yield Sample("all ignored", (normal((2, 5), 4), np.full((2,), -1, np.int32)), {"ignore_index": -1})
    smooth = {"label_smoothing": 0.1, "ignore_index": -1}
    yield Sample("smooth", (normal((4, 9), 5), labels_of((4,), 9, 4, -1)), smooth)
    yield Sample("smooth, one entry", (normal((6, 1), 5), labels_of((6,), 1, 4)), {"label_smoothing": 0.5})
    yield Sample("uniform target", (normal((4, 9), 6), labels_of((4,), 9, 5)), {"label_smoothing": 1.0})
    yield Sample("z loss", (normal((4, 9), 7, 3.0), labels_of((4,), 9, 6, -100)), {"z_loss": 0.01})
    every = {"z_loss": 0.3, "label_smoothing": 0.2, "return_lse": True, "ignore_index": 2}
    yield Sample("everything", (normal((5, 31), 8), labels_of((5,), 31, 7, 2)), every)
    yield Sample("large", (normal((3, 31), 9, 1e4), labels_of((3,), 31, 8)), {"return_lse": True})
    yield Sample("small", (normal((3, 31), 10, 1e-6), labels_of((3,), 31, 9)))
    yield Sample("constant", (np.full((2, 31), 88.0, np.float32), labels_of((2,), 31, 10)))
    masked = np.where(np.arange(12) % 3 == 1, -np.inf, normal((2, 12), 11)).astype(np.float32)
    yield Sample("masked entries", (masked, np.array([0, 11], np.int32)))
    yield Sample("outside", (normal((3, 5), 12), np.array([5, -1, 2], np.int32)))


def _losses(result: Any) -> Any:
    return np.asarray(result[0] if isinstance(result, tuple) else result, float)


@softmax_cross_entropy.law
def the_probabilities_of_all_labels_sum_to_one(op: Any, logits: Any, labels: Any, **static: Any) -> None:
    size = logits.shape[-1]
    each = np.broadcast_to(np.arange(size, dtype=np.int32), (*labels.shape, size))
    repeated = np.broadcast_to(logits[..., None, :], (*labels.shape, size, size))
    chances = np.exp(-_losses(op(repeated, each)))
    largest = np.abs(logits, where=np.isfinite(logits), out=np.zeros_like(logits)).max(initial=1)
    np.testing.assert_allclose(chances.sum(-1), np.ones(labels.shape), atol=1e-5 * float(largest))


@softmax_cross_entropy.law
def equal_logits_cost_the_logarithm_of_their_number(op: Any, logits: Any, labels: Any, **static: Any) -> None:
    inside = np.clip(labels, 0, logits.shape[-1] - 1)
    cost = _losses(op(np.zeros_like(logits), inside, label_smoothing=static.get("label_smoothing", 0.0)))
    np.testing.assert_allclose(cost, np.log(logits.shape[-1]), rtol=1e-6, atol=1e-7)


@softmax_cross_entropy.law
def an_ignored_token_costs_nothing(op: Any, logits: Any, labels: Any, **static: Any) -> None:
    for ignored in (-100, 1):
        assert not _losses(op(logits, np.full_like(labels, ignored), **(static | {"ignore_index": ignored}))).any()


@softmax_cross_entropy.law
def one_worked_number(op: Any, *args: Any, **static: Any) -> None:
    logits, labels = np.log(np.array([[1, 2, 5]], np.float32)), np.array([1], np.int32)
    loss, lse = op(logits, labels, label_smoothing=0.3, z_loss=0.1, return_lse=True)
    wanted = np.log(8) - 0.8 * np.log(2) - 0.1 * np.log(5) + 0.1 * np.log(8) ** 2
    np.testing.assert_allclose([loss, lse], [[wanted], [np.log(8)]], rtol=1e-6)


@softmax_cross_entropy.give_main
def main_sizes() -> Iterator[Sample]:
    yield Sample("8 tokens, 32000 entries", (normal((8, 32000)), labels_of((8,), 32000)))


@softmax_cross_entropy.give_cost
def cost(logits: Any, labels: Any, **static: Any) -> tuple[int, int]:
    """An exponential, a subtraction, a sum and a maximum per logit; logits are read once."""
    return 4 * logits.size, logits.size * logits.dtype.itemsize + labels.size * (labels.dtype.itemsize + 4)


@softmax_cross_entropy.backward.give_cost
def backward_cost(args: Any, outputs: Any, cotangents: Sequence[Any], **static: Any) -> tuple[int, int]:
    """An exponential, two subtractions and a product per logit; logits in and as many out, and a token's numbers."""
    logits, labels = args
    token = labels.dtype.itemsize + outputs[1].dtype.itemsize + sum(x.dtype.itemsize for x in cotangents)
    return 4 * logits.size, 2 * logits.size * logits.dtype.itemsize + labels.size * token


@softmax_cross_entropy.fault
def ignored_tokens_count(logits: Array, labels: Array, /, *, ignore_index: int = -100, **static: Any) -> Any:
    return softmax_cross_entropy.definition(logits, jnp.where(labels == ignore_index, 0, labels), **static)


@softmax_cross_entropy.fault
def smoothing_ignored(logits: Array, labels: Array, /, *, label_smoothing: float = 0.0, **static: Any) -> Any:
    return softmax_cross_entropy.definition(logits, labels, **static)


@softmax_cross_entropy.fault
def smoothing_over_the_other_labels(
    logits: Array, labels: Array, /, *, label_smoothing: float = 0.0, **static: Any
) -> Any:
    size = logits.shape[-1]
    share = label_smoothing * size / max(size - 1, 1)
    return softmax_cross_entropy.definition(logits, labels, label_smoothing=min(share, 1.0), **static)


@softmax_cross_entropy.fault
def z_loss_ignored(logits: Array, labels: Array, /, *, z_loss: float = 0.0, **static: Any) -> Any:
    return softmax_cross_entropy.definition(logits, labels, **static)


@softmax_cross_entropy.fault
def the_next_label(logits: Array, labels: Array, /, *, ignore_index: int = -100, **static: Any) -> Any:
    moved = jnp.where(labels == ignore_index, labels, (labels + 1) % logits.shape[-1])
    return softmax_cross_entropy.definition(logits, moved, ignore_index=ignore_index, **static)


@softmax_cross_entropy.fault
def maximum_not_subtracted(logits: Array, labels: Array, /, *, return_lse: bool = False, **static: Any) -> Any:
    lse = jnp.log(jnp.sum(jnp.exp(wide(logits)), -1))
    losses = softmax_cross_entropy.definition(logits, labels, **static) - log_sum_exp(wide(logits)) + lse
    return (losses, lse) if return_lse else losses


@softmax_cross_entropy.fault
def first_logit_left_out_of_the_sum(logits: Array, labels: Array, /, **static: Any) -> Any:
    hidden = jnp.where(jnp.arange(logits.shape[-1]) == 0, logits - 1e3, logits).astype(logits.dtype)
    right = softmax_cross_entropy.definition(logits, labels, **static)
    wrong = softmax_cross_entropy.definition(hidden, labels, **static)
    return jax.tree.map(lambda a, b: jnp.where((labels == 0), a, b), right, wrong)


@softmax_cross_entropy.fault
def labels_outside_are_clipped(logits: Array, labels: Array, /, *, ignore_index: int = -100, **static: Any) -> Any:
    inside = jnp.where(labels == ignore_index, labels, jnp.clip(labels, 0, logits.shape[-1] - 1))
    return softmax_cross_entropy.definition(logits, inside, ignore_index=ignore_index, **static)


@softmax_cross_entropy.fault
def half_precision_inside(logits: Array, labels: Array, /, **static: Any) -> Any:
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    return softmax_cross_entropy.definition(rounded, labels, **static)
