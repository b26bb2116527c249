"""Attention against a plain loop and MLX; its blocks of queries; its memory; what it refuses."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

from m2ml.op import definitions_only
from m2ml.ops import attention

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def looped(q, k, v, mask=None, lengths=None, *, causal=False, offset=None, window=None, soft_cap=None, scale=None):
    """Results and log-sum-exps by a loop over queries, heads and keys, in float64."""
    (b, t, h, d), (s, g), e = q.shape, k.shape[1:3], v.shape[3]
    out, lse = np.zeros((b, t, h, e)), np.full((b, t, h), -np.inf)
    mask = np.broadcast_to(np.zeros((), np.float32) if mask is None else mask, (b, h, t, s))
    for row, i, head in itertools.product(range(b), range(t), range(h)):
        length = s if lengths is None else lengths[row]
        place = i + (length - t if offset is None else offset)
        scores = {}
        for j in range(length):
            near = window is None or abs(j - place) < window
            if (causal and j > place) or not near or mask[row, head, i, j] is np.False_:
                continue
            score = q[row, i, head].astype(float) @ k[row, j, head // (h // g)] * (d**-0.5 if scale is None else scale)
            score = score if soft_cap is None else soft_cap * np.tanh(score / soft_cap)
            scores[j] = score + (0 if mask.dtype == bool else float(mask[row, head, i, j]))
        if scores and max(scores.values()) > -np.inf:
            lse[row, i, head] = np.logaddexp.reduce(list(scores.values()))
            weights = np.exp(np.array(list(scores.values())) - lse[row, i, head])
            out[row, i, head] = weights @ v[row, list(scores), head // (h // g)]
    return out, lse


LENGTHS = np.array([3, 0], np.int32)
CASES = {
    "plain": (None, None, {}),
    "causal": (None, None, {"causal": True}),
    "causal, offset": (None, None, {"causal": True, "offset": -1}),
    "window": (None, None, {"window": 2, "offset": 1}),
    "causal window, soft cap": (None, None, {"window": 3, "causal": True, "soft_cap": 1.0, "scale": 1.3}),
    "lengths": (None, LENGTHS, {"causal": True}),
    "boolean mask": (RNG.random((2, 1, 5, 7)) < 0.3, None, {}),
    "bias": (normal(4, 5, 7), LENGTHS, {"soft_cap": 2.0}),
    "bias of keys": (np.where(RNG.random((2, 1, 1, 7)) < 0.5, -np.inf, 0).astype(np.float32), None, {"causal": True}),
}


@pytest.fixture(params=[512, 3], ids=["one block", "blocks of three"])
def blocks(request, monkeypatch):
    """Queries per block; what JAX and the ops have traced is let go."""
    monkeypatch.setattr(importlib.import_module("m2ml.ops.attention_scores"), "QUERIES", request.param)
    yield
    importlib.import_module("m2ml.op")._outputs.cache_clear()
    jax.clear_caches()


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_a_loop_and_gradients_those_of_the_definition(case, blocks):
    mask, lengths, static = CASES[case]
    q, k, v = normal(2, 5, 4, 3), normal(2, 7, 2, 3), normal(2, 7, 2, 6)
    ours = definitions_only(lambda q, k, v, mask: attention(q, k, v, mask, lengths, return_lse=True, **static))
    for got, wanted in zip(jax.jit(ours)(q, k, v, mask), looped(q, k, v, mask, lengths, **static), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)

    def loss(function, q, k, v, bias):
        out, lse = function(q, k, v, mask if bias is None else bias)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(jnp.where(jnp.isfinite(lse), lse, 0)))

    def defined(q, k, v, mask):
        return attention.definition(q, k, v, mask, lengths, return_lse=True, **static)

    bias = mask if mask is not None and mask.dtype != bool else None
    wrt = (1, 2, 3) if bias is None else (1, 2, 3, 4)
    grad = jax.jit(jax.grad(loss, wrt), static_argnums=0)
    for got, wanted in zip(*(grad(f, q, k, v, bias) for f in (ours, defined)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("static", [{}, {"causal": True}])
def test_values_are_those_of_mlx(static):
    q, k, v = normal(2, 3, 4, 32), normal(2, 9, 2, 32), normal(2, 9, 2, 32)
    heads_first = [mx.array(np.ascontiguousarray(x.swapaxes(1, 2))) for x in (q, k, v)]
    known = mx.fast.scaled_dot_product_attention(*heads_first, scale=32**-0.5, mask="causal" if static else None)
    np.testing.assert_allclose(attention(q, k, v, **static), np.array(known).swapaxes(1, 2), rtol=1e-5, atol=1e-6)


def test_memory_grows_with_the_length_and_not_with_its_square():
    """Of the definition and its backward: twice the length, twice what XLA allocates, to within a quarter."""

    def grad(length):
        q = jax.ShapeDtypeStruct((1, length, 2, 8), np.float32)
        loss = definitions_only(lambda q, k, v: attention(q, k, v, causal=True).sum())
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    assert grad(4096) < 2.5 * grad(2048)


def test_what_it_refuses():
    q, k, v = normal(2, 5, 4, 3), normal(2, 7, 3, 3), normal(2, 7, 3, 6)
    with pytest.raises(ValueError, match="h is 4 in q, which must be a multiple of g, 3 in k"):
        attention(q, k, v)
    with pytest.raises(ValueError, match=r"d is 3 in q\[2, 5, 4, 3\] but 2 in k"):
        attention(q, k[..., :2], v)
    q = normal(2, 5, 3, 3)
    with pytest.raises(ValueError, match=r"mask is \[7, 5\], which does not broadcast to scores \[2, 3, 5, 7\]"):
        attention(q, k, v, normal(7, 5))
    with pytest.raises(TypeError, match="mask is int32; it takes floating-point numbers"):
        attention(q, k, v, np.ones((5, 7), np.int32))
    with pytest.raises(TypeError, match="key_lengths is float32; it takes integers"):
        attention(q, k, v, None, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="window is 0; it must be at least 1 or None"):
        attention(q, k, v, window=0)
