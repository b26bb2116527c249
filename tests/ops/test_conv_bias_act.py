"""The fused convolution against a plain loop and against MLX, and its errors."""

import itertools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import m2ml
from m2ml.ops import batch_norm_act, conv_bias_act


def looped(x, weight, strides, pads, dilation, groups):
    """Sums of products, one output element at a time, in float64."""
    x = np.pad(x.astype(float), [(0, 0), *pads, (0, 0)])
    kh, kw, inputs, outputs = weight.shape
    height, width = (
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(x.shape[1:3], (kh, kw), dilation, strides, strict=True)
    )
    y = np.zeros((len(x), height, width, outputs))
    for n, i, j, o in itertools.product(*map(range, y.shape)):
        group = o // (outputs // groups)
        for a, b, c in itertools.product(range(kh), range(kw), range(inputs)):
            place = i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1]
            y[n, i, j, o] += x[n, *place, group * inputs + c] * weight[a, b, c, o]
    return y


@pytest.mark.parametrize(
    ("groups", "strides", "dilation"), [(1, (2, 1), (1, 2)), (2, (1, 1), (1, 1)), (2, (1, 3), (2, 1))]
)
def test_against_a_loop(groups, strides, dilation):
    rng, pads = np.random.default_rng(groups), ((1, 0), (2, 1))
    x = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)
    weight = rng.standard_normal((3, 2, 4 // groups, 6)).astype(np.float32)
    y = conv_bias_act(x, weight, strides=strides, padding=pads, dilation=dilation, groups=groups)
    np.testing.assert_allclose(y, looped(x, weight, strides, pads, dilation, groups), atol=1e-4)


@pytest.mark.parametrize(
    ("x", "weight", "static"),
    [
        ((1, 26, 26, 5), (1, 1, 5, 600), {"activation": "relu6"}),
        ((1, 60, 60, 3), (1, 1, 3, 70), {"activation": "gelu"}),
        ((2, 25, 29, 3), (3, 3, 3, 40), {"strides": 2, "activation": "relu"}),
        ((1, 9, 14, 64), (3, 3, 64, 33), {}),
        ((1, 4, 3, 2), (3, 3, 2, 48), {"padding": 7}),
        ((1, 4, 3, 2), (3, 4, 2, 16), {"padding": ((0, 0), (9, 0)), "dilation": (1, 3)}),
        ((1, 12, 13, 3), (4, 4, 3, 65), {"strides": 4, "padding": "VALID"}),
        ((1, 9, 8, 6), (1, 1, 6, 17), {"strides": (3, 2), "padding": ((0, 2), (0, 1))}),
    ],
)
def test_the_kernel_walks_every_row_and_column(x, weight, static):
    """Of images with many rows, weights of many columns, and padding wider than the image."""
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (x, weight, weight[-1:])]
    call = m2ml.jit(lambda *arrays: conv_bias_act(*arrays, **static))
    assert "kernel cpp/conv_bias_act" in str(call.on("cpu").explain(*arrays))
    report = m2ml.compare(call, *arrays, backends=["cpu"])
    assert report.ok, report


def test_as_in_mlx():
    rng = np.random.default_rng(3)
    x, weight = (
        rng.standard_normal((2, 7, 6, 4)).astype(np.float32),
        rng.standard_normal((3, 3, 2, 4)).astype(np.float32),
    )
    theirs = mx.conv2d(mx.array(x), mx.array(weight.transpose(3, 0, 1, 2)), stride=2, padding=1, groups=2)
    ours = conv_bias_act(x, weight, strides=2, padding=1, groups=2, activation="relu")
    np.testing.assert_allclose(ours, np.maximum(np.array(theirs), 0), atol=1e-5)


@pytest.mark.parametrize(
    ("static", "said"),
    [
        ({"strides": 0}, "strides is 0; it must be one positive number or two"),
        ({"dilation": (1, 2, 3)}, r"dilation is \(1, 2, 3\); it must be"),
        ({"padding": "FULL"}, "padding is 'FULL'; it must be 'SAME', 'VALID', a number or"),
        ({"padding": -1}, "padding is -1; it must be"),
        ({"groups": 0}, "groups is 0; it must be positive"),
        ({"groups": 2}, "x has 4 channels but weight takes 4 in each of 2 groups, 8 in all"),
        ({"activation": "tanh"}, "activation is 'tanh'; it must be 'none', 'relu', .* or 'quick_gelu'"),
    ],
)
def test_errors(static, said):
    with pytest.raises(ValueError, match=f"^conv_bias_act: {said}"):
        conv_bias_act(np.zeros((1, 4, 4, 4), np.float32), np.zeros((3, 3, 4, 6), np.float32), **static)


def test_output_channels_fall_into_the_groups():
    with pytest.raises(ValueError, match="3 output channels do not fall into 2 groups"):
        conv_bias_act(np.zeros((1, 4, 4, 4), np.float32), np.zeros((3, 3, 2, 3), np.float32), groups=2)


def test_batch_norm_as_in_mlx():
    x = np.random.default_rng(4).standard_normal((2, 3, 4, 5)).astype(np.float32)
    layer, zero, one = nn.BatchNorm(5), np.zeros(5, np.float32), np.ones(5, np.float32)
    theirs = layer(mx.array(x)), layer.running_mean, layer.running_var
    for ours, of_mlx in zip(batch_norm_act(x, zero, one, train=True), theirs, strict=True):
        np.testing.assert_allclose(ours, np.array(of_mlx), atol=1e-5)


def test_batch_norm_of_one_value():
    with pytest.raises(
        ValueError, match=r"batch_norm_act: training takes more than one value per channel; x is \[1, 5\]"
    ):
        batch_norm_act(np.zeros((1, 5), np.float32), np.zeros(5, np.float32), np.ones(5, np.float32), train=True)


def test_the_kernel_declines_what_it_cannot_walk():
    x, nothing = np.ones((1, 3, 3, 0), np.float32), np.ones((2, 2, 0, 3), np.float32)
    call = m2ml.jit(
        lambda x, weight, bias, groups: conv_bias_act(x, weight, bias, groups=groups), static_argnames="groups"
    )
    bias = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(
        m2ml.get(call.on("cpu")(x, nothing, bias, groups=1)), np.broadcast_to(bias, (1, 3, 3, 3))
    )
    assert "the weight is empty" in str(call.on("cpu").explain(x, nothing, bias, groups=1))
    x, weight = np.ones((1, 3, 3, 4), np.float32), np.ones((2, 2, 2, 6), np.float32)
    assert "not 2 groups" in str(call.on("cpu").explain(x, weight, None, groups=2))
