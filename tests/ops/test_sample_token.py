"""Equal bits give equal tokens everywhere, those of a plain NumPy sampler in float64."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml.ops import sample_token

SETTINGS = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m, "repetition_penalty": r}
    for (t, r), (k, p, m) in itertools.product(
        [(1.0, 1.0), (0.6, 1.2), (3.0, 0.8)], [(None, 1.0, 0.0), (40, 0.9, 0.0), (None, 0.8, 0.01)]
    )
]


def plain(logits, bits, tokens, *, temperature, top_k, top_p, min_p, repetition_penalty):
    """One row, as Hugging Face's processors do it one after the other."""
    x = logits.astype(float)
    seen = np.unique(tokens[tokens >= 0])
    x[seen] = np.where(x[seen] > 0, x[seen] / repetition_penalty, x[seen] * repetition_penalty)
    order = np.argsort(-x, kind="stable")[: top_k or len(x)]
    p = np.exp((x[order] - x[order[0]]) / temperature)
    stay = (np.cumsum(p) - p < top_p * p.sum()) & (p >= min_p)
    chosen = np.zeros(len(x))
    chosen[order[stay]] = p[stay]
    return int(np.argmax(np.cumsum(chosen) > int(bits) / 2**32 * chosen.sum()))


def batch(rows=64, vocabulary=1000):
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((rows, vocabulary)) * 4).astype(np.float32)
    tokens = rng.integers(-1, vocabulary, (rows, 30), np.int32)
    return logits, rng.integers(0, 2**32, rows, np.uint32), tokens


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_backend_draws_the_token_of_the_plain_sampler(settings):
    args = batch()
    expected = [plain(*row, **settings) for row in zip(*args, strict=True)]
    draw = m2ml.jit(lambda *xs: sample_token(*xs, **settings))
    for backend in ("cpu", "mlx"):
        np.testing.assert_array_equal(m2ml.get(draw.on(backend)(*args)), expected)


def test_half_precision_logits_are_taken_as_they_are():
    logits, bits, _ = batch()
    half = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_array_equal(sample_token(half, bits), sample_token(half.astype(jnp.float32), bits))


def test_the_last_token_and_the_first_are_drawn_at_the_ends_of_the_bits():
    logits = np.zeros((2, 1000), np.float32)
    np.testing.assert_array_equal(sample_token(logits, np.array([0, 2**32 - 1], np.uint32)), [0, 999])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_a_row_with_a_nan_gives_no_token_however_long(backend, temperature):
    logits, bits, _ = batch(8, 4096)
    logits[1, 0], logits[2, -1] = np.nan, np.nan
    tokens = m2ml.get(m2ml.jit(lambda *xs: sample_token(*xs, temperature=temperature), backend=backend)(logits, bits))
    np.testing.assert_array_equal(tokens < 0, np.isnan(logits).any(-1))


def test_many_equally_likely_tokens_are_counted_exactly():
    """Half a million weights add up to more than 32 bits; token i begins at bits i / 500,000 of 2**32."""
    places = np.array([0, 1, 250_000, 499_999], np.uint64)
    bits = (places * 2**32 + 500_000 - 1) // 500_000
    logits = np.zeros((4, 500_000), np.float32)
    np.testing.assert_array_equal(sample_token(logits, bits.astype(np.uint32)), places)
    np.testing.assert_array_equal(sample_token(logits[1:], bits[1:].astype(np.uint32) - 1), places[1:] - 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ties_go_to_the_lower_index_and_hopeless_rows_to_minus_one(temperature):
    low, inf, nan = -np.inf, np.inf, np.nan
    logits = np.array([[1, 3, 3], [low, low, low], [0, inf, 0], [0, nan, 1], [low, 5, low]], np.float32)
    bits = np.full(5, 2**32 - 1, np.uint32)
    np.testing.assert_array_equal(sample_token(logits, bits, temperature=temperature, top_k=1), [1, -1, -1, -1, 1])


@pytest.mark.parametrize(
    ("static", "said"),
    [
        ({"temperature": -1.0}, r"temperature is -1\.0; it must be 0 or a finite number from 1e-6 on"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1, or None for all"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be above 0 and at most 1"),
        ({"min_p": 1.5}, r"min_p is 1\.5; it must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0; it must be a positive number"),
        ({"repetition_penalty": 2.0}, "tokens are missing; repetition_penalty needs those before"),
    ],
)
def test_illegal_static_arguments(static, said):
    with pytest.raises(ValueError, match=f"^sample_token: {said}"):
        sample_token(np.zeros((2, 5), np.float32), np.zeros(2, np.uint32), **static)


def test_illegal_arrays():
    logits, bits = np.zeros((2, 5), np.float32), np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="sample_token: bits are missing; only temperature 0 needs none"):
        sample_token(logits)
    with pytest.raises(TypeError, match="sample_token: bits are int32; it takes uint32"):
        sample_token(logits, bits.astype(np.int32))
    with pytest.raises(TypeError, match="sample_token: tokens is float32; it takes integers"):
        sample_token(logits, bits, logits)
    with pytest.raises(ValueError, match="logits are of 0 tokens; it takes 1 to 500000"):
        sample_token(logits[:, :0], bits)
