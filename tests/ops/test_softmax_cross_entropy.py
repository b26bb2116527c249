"""Cross-entropy against Optax, MLX and a plain loop, and what it refuses."""

import jax
import jax.numpy as jnp
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import optax
import pytest

from m2ml.ops import softmax_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((5, 11))).astype(np.float32)
LABELS = RNG.integers(0, 11, 5).astype(np.int32)


def test_values_and_gradients_are_those_of_optax():
    def ours(logits):
        return softmax_cross_entropy(logits, LABELS).sum()

    def theirs(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).sum()

    for mine, known in zip(jax.value_and_grad(ours)(LOGITS), jax.value_and_grad(theirs)(LOGITS), strict=True):
        np.testing.assert_allclose(mine, known, rtol=1e-6, atol=1e-7)


def test_smoothed_losses_are_those_of_optax_and_mlx():
    target = optax.smooth_labels(jax.nn.one_hot(LABELS, 11), 0.2)
    ours = softmax_cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    np.testing.assert_allclose(ours, optax.softmax_cross_entropy(LOGITS, target), rtol=2e-6)
    mlx = nn.losses.cross_entropy(mx.array(LOGITS), mx.array(LABELS), label_smoothing=0.2)
    np.testing.assert_allclose(ours, np.array(mlx), rtol=2e-6)


def test_half_precision_logits_give_float32_losses_and_half_precision_gradients():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    losses, lse = softmax_cross_entropy(logits, LABELS, return_lse=True)
    assert losses.dtype == lse.dtype == jnp.float32
    assert jax.grad(lambda x: softmax_cross_entropy(x, LABELS).mean())(logits).dtype == jnp.bfloat16
    np.testing.assert_allclose(losses, softmax_cross_entropy(logits.astype(jnp.float32), LABELS))


def test_an_ignored_row_of_infinite_logits_costs_nothing():
    logits = np.concatenate([LOGITS, np.full((1, 11), np.inf, np.float32)])
    losses = softmax_cross_entropy(logits, np.append(LABELS, -100))
    assert losses[-1] == 0
    assert np.isfinite(losses).all()


def test_what_it_refuses():
    with pytest.raises(TypeError, match="labels is float32; it takes integers"):
        softmax_cross_entropy(LOGITS, LABELS.astype(np.float32))
    with pytest.raises(TypeError, match="logits is int32; it takes floating-point numbers"):
        softmax_cross_entropy(LOGITS.astype(np.int32), LABELS)
    with pytest.raises(ValueError, match=r"label_smoothing is 1.5; it must be from 0 to 1"):
        softmax_cross_entropy(LOGITS, LABELS, label_smoothing=1.5)
    with pytest.raises(ValueError, match="v is 0; a vocabulary has at least one entry"):
        softmax_cross_entropy(LOGITS[:, :0], LABELS)
    with pytest.raises(ValueError, match=r"b is \[5\] in logits\[5, 11\] but \[4\] in labels\[4\]"):
        softmax_cross_entropy(LOGITS, LABELS[:4])
