from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2ml.models import CNN, GPT, CNNConfig, GPTConfig, functional, parameter_count
from m2ml.models.layers import LayerNorm, dropout, gelu, max_pool

CONFIG = GPTConfig(vocab_size=11, context=6, layers=2, heads=2, embed_dim=8)


def test_a_position_sees_nothing_behind_it():
    model = functional(GPT, CONFIG)
    params = model.init(jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    changed = tokens.at[0, 4].set(9)
    before, after = model.apply(params, tokens), model.apply(params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(axis=-1).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpt_gives_float32_logits_of_the_vocabulary(tied, dtype):
    config = GPTConfig(vocab_size=11, context=6, layers=1, heads=2, embed_dim=8, tied=tied, dtype=dtype)
    model = functional(GPT, config)
    out = jax.eval_shape(model.apply, model.shapes(), jax.ShapeDtypeStruct((3, 5), jnp.int32))
    assert (out.shape, out.dtype) == ((3, 5, 11), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.shapes()))
    embeddings, block = (11 + 6) * 8, 4 * 8 * 8 + 4 * 8 + 2 * 4 * 8 * 8 + 5 * 8 + 4 * 8
    assert parameter_count(model.shapes()) == embeddings + block + 2 * 8 + (0 if tied else 8 * 11 + 11)


def test_the_same_key_gives_the_same_parameters():
    model = functional(CNN, CNNConfig(height=8, width=8))
    first, again, other = (model.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["head"]["kernel"] != other["head"]["kernel"]).any()


def test_layer_norm_leaves_mean_zero_and_variance_one():
    x = jnp.array([[1.0, 2.0, 3.0, 6.0], [-4.0, 0.0, 4.0, 8.0]])
    out = np.asarray(LayerNorm(4, epsilon=0.0)(x), np.float64)
    rounding = 8 * np.finfo(np.float32).eps
    assert np.abs(out.mean(-1)).max() < rounding
    assert np.abs(out.var(-1) - 1).max() < rounding


def test_gelu_at_one_worked_number():
    exact = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))
    assert abs(float(gelu(jnp.float32(1))) - exact) < 4 * np.finfo(np.float32).eps


def test_max_pool_drops_an_odd_last_row():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[6.0, 8.0]])


def test_dropout_scales_what_it_keeps():
    x = jnp.ones(1000)
    out = np.asarray(dropout(x, rate=0.75, key=jax.random.key(0)))
    assert set(np.unique(out)) == {0.0, 4.0}
    assert dropout(x, rate=0.75, key=None) is x


@pytest.mark.parametrize(
    ("config", "wrong", "said"),
    [
        (GPTConfig, {"vocab_size": 5, "embed_dim": 10, "heads": 4}, "multiple of heads; got 10 for 4"),
        (GPTConfig, {"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        (GPTConfig, {"vocab_size": 5, "dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        (CNNConfig, {"height": 7, "width": 3, "features": (2, 2)}, "7x3 cannot be halved 2 times"),
        (CNNConfig, {"features": ()}, "features must be one or more sizes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, wrong, said):
    with pytest.raises(ValueError, match=said):
        config(**wrong)


def test_a_sequence_longer_than_the_context_is_refused():
    model = functional(GPT, CONFIG)
    with pytest.raises(ValueError, match="tokens are 7 long, but the context is 6"):
        jax.eval_shape(model.apply, model.shapes(), jax.ShapeDtypeStruct((1, 7), jnp.int32))
