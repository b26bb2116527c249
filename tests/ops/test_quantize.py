"""Quantised arrays against MLX: the same bits both ways, on every backend."""

import dataclasses

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest

import m2ml
from m2ml.ops import Quantized, dequantize, quantize, quantized_matmul
from m2ml.ops.quantize import BITS, FP4, GROUP_SIZES, decoded

RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((16, 256)) * 10.0 ** RNG.uniform(-3, 3, (16, 1))).astype(np.float32)
WEIGHT[0] = 0
WEIGHT[1] = 2.5
WEIGHT[2] = np.abs(WEIGHT[2])
MLX_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def to_numpy(x):
    """An array of MLX, JAX or NumPy, floats in float32."""
    if isinstance(x, mx.array):
        return np.array(x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x)
    array = np.asarray(x)
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, np.floating) else array


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("dtype", MLX_DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_affine_is_what_mlx_gives_bit_for_bit(bits, dtype, backend):
    """Codes, scales and biases; elements too on mlx, where XLA may round a product and a sum once."""
    theirs = mx.array(WEIGHT).astype(MLX_DTYPES[dtype])
    ours = jnp.asarray(WEIGHT).astype(dtype)
    for group_size in GROUP_SIZES:
        form = {"bits": bits, "group_size": group_size}
        known = mx.quantize(theirs, **form)
        found = m2ml.jit(lambda w, form=form: quantize(w, **form), backend=backend, kernels=False)(ours)
        for got, wanted in zip((found.packed, found.scales, found.biases), known, strict=True):
            np.testing.assert_array_equal(to_numpy(got), to_numpy(wanted))
        values = to_numpy(m2ml.jit(dequantize, backend=backend, kernels=False)(found))
        wanted = to_numpy(mx.dequantize(*known, **form))
        if backend == "mlx":
            np.testing.assert_array_equal(values, wanted)
        largest = np.abs(WEIGHT).max(-1, keepdims=True)
        assert np.all(np.abs(values - wanted) <= 2 * float(jnp.finfo(dtype).eps) * largest)


def test_mxfp4_is_what_mlx_gives_but_for_ties_and_the_sign_of_zero():
    weight = WEIGHT[1:]
    packed, scales = mx.quantize(mx.array(weight), mode="mxfp4")
    found = quantize(weight, mode="mxfp4")
    np.testing.assert_array_equal(found.scales, np.array(scales))
    scaled = np.abs(weight) / np.repeat(2.0 ** (np.array(scales, float) - 127), 32, axis=-1)
    tied = np.isin(scaled, (FP4[:7] + FP4[1:8]) / 2)
    wanted = np.array(mx.dequantize(packed, scales, mode="mxfp4", dtype=mx.float32))
    np.testing.assert_array_equal(decoded(found)[~tied], wanted[~tied])
    np.testing.assert_array_equal(dequantize(found, dtype="float32"), decoded(found))
    again = mx.dequantize(mx.array(np.asarray(found.packed)), scales, mode="mxfp4", dtype=mx.float32)
    np.testing.assert_array_equal(np.array(again), decoded(found))


@pytest.mark.parametrize(("bits", "group_size", "mode"), [*((bits, 64, "affine") for bits in BITS), (4, 32, "mxfp4")])
def test_mlx_multiplies_our_arrays_as_they_are(bits, group_size, mode):
    form = {"bits": bits, "group_size": group_size, "mode": mode}
    weight, x = quantize(WEIGHT, **form), RNG.standard_normal((3, 256)).astype(np.float32)
    arrays = [mx.array(np.asarray(leaf)) for leaf in jax.tree.leaves(weight)]
    known = np.array(mx.quantized_matmul(mx.array(x), *arrays, **form))
    size = np.abs(x) @ np.abs(decoded(weight)).T
    assert np.all(np.abs(quantized_matmul(x, weight) - known) <= 1e-6 * size + 1e-6)


def test_the_weight_of_a_product_is_frozen_and_that_of_dequantize_is_not():
    weight, x = quantize(WEIGHT), RNG.standard_normal((3, 256)).astype(np.float32)

    def scaled(scales, product):
        return product(dataclasses.replace(weight, scales=scales)).sum()

    assert not jax.grad(scaled)(weight.scales, lambda w: quantized_matmul(x, w)).any()
    assert jax.grad(scaled)(weight.scales, lambda w: x @ dequantize(w).T).any()
    gradient = jax.grad(lambda x: quantized_matmul(x, weight).sum())(x)
    np.testing.assert_allclose(gradient, np.ones((3, 16)) @ decoded(weight), rtol=1e-4, atol=1e-3)


def test_a_quantized_array_is_a_pytree_with_the_shape_of_its_elements():
    weight = quantize(WEIGHT, bits=3, group_size=32)
    assert weight.shape == (16, 256)
    assert [leaf.shape for leaf in jax.tree.leaves(weight)] == [(16, 24), (16, 8), (16, 8)]
    assert isinstance(jax.jit(lambda w: w)(weight), Quantized)


def test_what_they_refuse():
    with pytest.raises(ValueError, match="bits is 7; it must be 2, 3, 4, 5, 6 or 8"):
        quantize(WEIGHT, bits=7)
    with pytest.raises(ValueError, match="group_size is 16; it must be 32, 64 or 128"):
        quantize(WEIGHT, group_size=16)
    with pytest.raises(ValueError, match="mode is 'nvfp4'; it must be 'affine' or 'mxfp4'"):
        quantize(WEIGHT, mode="nvfp4")
    with pytest.raises(ValueError, match=r"n is 100 in w\[16, 100\]; it must be a multiple of the group size, 64"):
        quantize(WEIGHT[:, :100])
    with pytest.raises(TypeError, match="w is int32; it takes floating-point numbers"):
        quantize(WEIGHT.astype(np.int32))
    weight = quantize(WEIGHT)
    with pytest.raises(
        TypeError, match=r"quantized_matmul: w is float32\[16, 256\]; it takes a Quantized array, which quantize gives"
    ):
        quantized_matmul(WEIGHT, WEIGHT)
    with pytest.raises(ValueError, match=r"n is 255 in x\[255\] but 256 in w\[16, 256\]"):
        quantized_matmul(WEIGHT[0, :255], weight)
    with pytest.raises(ValueError, match=r"biases of w are None; packed\[16, 32\] of 4 bits in groups of 64 goes with"):
        dequantize(dataclasses.replace(weight, biases=None))
    with pytest.raises(TypeError, match="affine takes packed uint32 and scales and biases of one floating-point dtype"):
        dequantize(dataclasses.replace(weight, packed=weight.packed.astype(jnp.int32)))
    with pytest.raises(TypeError, match="w has packed uint32, scales float16, biases float32"):
        quantized_matmul(WEIGHT, dataclasses.replace(weight, scales=weight.scales.astype(np.float16)))
