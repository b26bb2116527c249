"""Rotary embeddings against MLX's own, and scaled frequencies against the formulas of their papers, in loops."""

import math

import mlx.core as mx
import numpy as np
import pytest

from m2ml.ops import rope, rope_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
def test_as_in_mlx(interleaved, rotated):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    offsets = np.array([3, 40], np.int32)
    ours = rope(x, offsets[:, None] + np.arange(5), rope_frequencies(rotated).inverse, interleaved=interleaved)
    heads_first = mx.array(x.transpose(0, 2, 1, 3))
    theirs = mx.fast.rope(
        heads_first, rotated, traditional=interleaved, base=10000.0, scale=1.0, offset=mx.array(offsets)
    )
    np.testing.assert_allclose(ours, np.array(theirs).transpose(0, 2, 1, 3), atol=1e-5)


def test_llama3_frequencies():
    """Equation by equation as in the release of Llama 3.1."""
    got, plain = rope_frequencies(64, 500000.0, LLAMA3), rope_frequencies(64, 500000.0).inverse.astype(float)
    for frequency, scaled in zip(plain, got.inverse, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected = frequency
        elif wavelength > 8192:
            expected = frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 8 + smooth * frequency
        assert scaled == pytest.approx(expected, rel=1e-6)
    assert got.magnitude == 1.0


def test_yarn_frequencies():
    """Dimensions that turn more than 32 times in the context are kept, below once divided; between is a ramp."""
    got, plain = rope_frequencies(64, 10000.0, YARN), rope_frequencies(64, 10000.0).inverse.astype(float)
    turns = 4096 * plain / (2 * math.pi)
    kept, divided = int(np.sum(turns > 32)), int(np.sum(turns < 1))
    assert kept > 0
    assert divided > 0
    np.testing.assert_allclose(got.inverse[: kept - 1], plain[: kept - 1], rtol=1e-6)
    np.testing.assert_allclose(got.inverse[-(divided - 1) :], plain[-(divided - 1) :] / 4, rtol=1e-6)
    ratio = got.inverse / plain
    assert np.all(np.diff(ratio) <= 1e-7)
    steps = np.diff(ratio)[kept:-divided]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert got.magnitude == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_attention_factors():
    both = rope_frequencies(64, 10000.0, YARN | {"mscale": 0.707, "mscale_all_dim": 1.0}).magnitude
    assert both == pytest.approx((0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    assert rope_frequencies(64, 10000.0, YARN | {"attention_factor": 1.5}).magnitude == 1.5


def test_linear_frequencies():
    scaled = rope_frequencies(8, 100.0, {"type": "linear", "factor": 2.0}).inverse
    np.testing.assert_array_equal(2 * scaled, rope_frequencies(8, 100.0).inverse)


def test_errors():
    with pytest.raises(ValueError, match="dim is 3; it must be even and positive"):
        rope_frequencies(3)
    with pytest.raises(ValueError, match="rope_type is 'other'; known are default, linear, llama3, yarn"):
        rope_frequencies(4, scaling={"rope_type": "other"})
    with pytest.raises(ValueError, match="rope_type 'llama3' needs 'factor' in scaling"):
        rope_frequencies(4, scaling={k: v for k, v in LLAMA3.items() if k != "factor"} | {"low_freq_factor": 1})
    with pytest.raises(ValueError, match="rope: 4 inverse_frequencies rotate 8 dimensions but x has 6"):
        rope(np.zeros((2, 1, 6), np.float32), np.zeros(2, np.int32), np.zeros(4, np.float32))
