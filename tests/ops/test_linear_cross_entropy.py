"""Linear cross-entropy against the loss of whole logits, in values, gradients and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m2ml.ops import linear_cross_entropy

RNG = np.random.default_rng(0)


def inputs(tokens, width, vocabulary):
    hidden = RNG.standard_normal((tokens, width)).astype(np.float32)
    weight = RNG.standard_normal((vocabulary, width)).astype(np.float32)
    return hidden, weight, RNG.integers(0, vocabulary, tokens).astype(np.int32)


def whole(hidden, weight, labels):
    counts = labels != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ weight.T, jnp.where(counts, labels, 0))
    return losses * counts


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("vocabulary", [12, 9000])
def test_values_and_gradients_are_those_of_whole_logits(reduction, vocabulary):
    """Also where the gradient of the weight is added to some of its rows at a time."""
    hidden, weight, labels = inputs(7, 4, vocabulary)
    labels[2] = -100
    reduced = {"mean": lambda x: x.sum() / 6, "sum": jnp.sum, "none": lambda x: jnp.sin(x).sum()}[reduction]

    def ours(hidden, weight):
        found = linear_cross_entropy(hidden, weight, labels, reduction=reduction, rows=3)
        return reduced(found) if reduction == "none" else found

    mine = jax.value_and_grad(ours, (0, 1))(hidden, weight)
    known = jax.value_and_grad(lambda h, w: reduced(whole(h, w, labels)), (0, 1))(hidden, weight)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_array_is_as_large_as_the_logits(reduction):
    """XLA's own figure: beyond arguments and results, a fraction of the 8 MB that the logits of all tokens need."""
    tokens, width, vocabulary = 512, 8, 4096

    def loss(hidden, weight, labels):
        return linear_cross_entropy(hidden, weight, labels, reduction=reduction, rows=16).sum()

    grad = jax.jit(jax.grad(loss, (0, 1))).lower(*inputs(tokens, width, vocabulary)).compile()
    assert grad.memory_analysis().temp_size_in_bytes < tokens * vocabulary * 4 / 5


def test_a_mean_over_no_token_is_zero():
    hidden, weight, labels = inputs(3, 4, 5)
    loss, gradient = jax.value_and_grad(linear_cross_entropy)(hidden, weight, np.full_like(labels, -100))
    assert loss == 0
    assert not np.any(gradient)


def test_half_precision_gradients_have_the_dtypes_of_their_arguments():
    hidden, weight, labels = inputs(3, 4, 5)
    hidden, weight = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(weight, jnp.float16)
    loss, gradients = jax.value_and_grad(linear_cross_entropy, (0, 1))(hidden, weight, labels)
    assert (loss.dtype, *(g.dtype for g in gradients)) == (jnp.float32, jnp.bfloat16, jnp.float16)


def test_what_it_refuses():
    hidden, weight, labels = inputs(3, 4, 5)
    with pytest.raises(ValueError, match="reduction is 'max'; it must be 'mean', 'sum' or 'none'"):
        linear_cross_entropy(hidden, weight, labels, reduction="max")
    with pytest.raises(ValueError, match="rows is 0; it must be at least 1 or None"):
        linear_cross_entropy(hidden, weight, labels, rows=0)
    with pytest.raises(TypeError, match="labels is float32; it takes integers"):
        linear_cross_entropy(hidden, weight, labels.astype(np.float32))
    with pytest.raises(ValueError, match=r"n is 4 in hidden\[3, 4\] but 3 in weight\[5, 3\]"):
        linear_cross_entropy(hidden, weight[:, :3], labels)
