"""Convolutions: MLX's own where it has one, patches and a matrix product for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from m2ml.interpreter import Equation
from m2ml_mlx.rules.conversions import convert
from m2ml_mlx.rules.dot import matrix_product
from m2ml_mlx.rules.elementwise import complex_of
from m2ml_mlx.rules.structure import pad_with, permute
from m2ml_mlx.rules.table import FLOATS, constant_like, full, is_complex, out_dtype, rules


@dataclass(frozen=True, slots=True)
class Convolution:
    """What a convolution does along its spatial axes, and into how many groups of features or of batches it falls."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_groups: int
    batch_groups: int

    @property
    def groups(self) -> int:
        return self.feature_groups * self.batch_groups

    def output_sizes(self, x: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Spatial sizes of the output, from those of the input and of the kernel."""
        sizes = []
        for axis, (n, k) in enumerate(zip(x, kernel, strict=True)):
            span = (n - 1) * self.input_dilation[axis] + 1 + sum(self.padding[axis])
            sizes.append((span - (k - 1) * self.kernel_dilation[axis] - 1) // self.strides[axis] + 1)
        return sizes


@rules.define("conv_general_dilated")
def conv_general_dilated(equation: Equation, x: mx.array, kernel: mx.array) -> mx.array:
    params = equation.params
    numbers = params["dimension_numbers"]
    dtype = out_dtype(equation)
    if 0 in equation.shape or x.size == 0 or kernel.size == 0:
        return full(equation.shape, 0, dtype)
    if dtype in FLOATS or dtype == mx.complex64:
        x, kernel = convert(x, dtype), convert(kernel, dtype)
    batch, feature, *spatial = numbers.lhs_spec
    x = permute(x, [batch, *spatial, feature])
    out_feature, in_feature, *spatial = numbers.rhs_spec
    kernel = permute(kernel, [out_feature, *spatial, in_feature])
    conv = Convolution(
        tuple(params["window_strides"]),
        tuple((low, high) for low, high in params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        params["feature_group_count"],
        params["batch_group_count"],
    )
    out = convolve(x, kernel, conv, dtype)
    batch, feature, *spatial = numbers.out_spec
    order = {batch: 0, feature: out.ndim - 1} | {axis: i + 1 for i, axis in enumerate(spatial)}
    return permute(out, [order[axis] for axis in range(out.ndim)])


def convolve(x: mx.array, kernel: mx.array, conv: Convolution, dtype: mx.Dtype) -> mx.array:
    """[batch, *spatial, in] with [out, *spatial, in / groups] gives [batch, *spatial, out]."""
    if is_complex(x):
        a, b, c, d = mx.real(x), mx.imag(x), mx.real(kernel), mx.imag(kernel)
        real = convolve(a, c, conv, mx.float32) - convolve(b, d, conv, mx.float32)
        return complex_of(real, convolve(a, d, conv, mx.float32) + convolve(b, c, conv, mx.float32))
    sizes = conv.output_sizes(x.shape[1:-1], kernel.shape[1:-1])
    # MLX convolves float64 only as exactly as float32.
    native = x.dtype in FLOATS and x.dtype != mx.float64 and 1 <= len(sizes) <= (3 if conv.groups == 1 else 2)
    # A kernel larger than the output is the gradient of a kernel: few outputs, long sums.
    if native and math.prod(kernel.shape[1:-1]) <= math.prod(sizes):
        return _native(x, kernel, conv)
    return _by_patches(x, kernel, conv, sizes, dtype)


def _native(x: mx.array, kernel: mx.array, conv: Convolution) -> mx.array:
    padding, spread = conv.padding, conv.input_dilation
    if min(edge for edges in padding for edge in edges) < 0:
        x = _padded(x, conv)
        padding, spread = ((0, 0),) * len(padding), (1,) * len(padding)
    if conv.batch_groups > 1:
        x = mx.unflatten(x, 0, (conv.batch_groups, -1))
        x = mx.flatten(mx.moveaxis(x, 0, -2), -2)
    low, high = zip(*padding, strict=True)
    return mx.conv_general(
        x,
        kernel,
        stride=conv.strides,
        padding=(low, high),
        kernel_dilation=conv.kernel_dilation,
        input_dilation=spread,
        groups=conv.groups,
    )


def _padded(x: mx.array, conv: Convolution) -> mx.array:
    """``x`` with its padding and dilation written out as zeros; its spatial axes begin at 1."""
    edges = [(low, high, step - 1) for (low, high), step in zip(conv.padding, conv.input_dilation, strict=True)]
    others = [(0, 0, 0)] * (x.ndim - 1 - len(edges))
    return pad_with(x, constant_like(x, 0), [(0, 0, 0), *edges, *others])


def _by_patches(x: mx.array, kernel: mx.array, conv: Convolution, sizes: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """One matrix product per group over a copy of every window; exact for integers.

    In the gradient of a kernel the features are the original batch and the batch is the original features:
    [features, *spatial, groups, batch] is then how the input lies in memory.
    """
    groups, window = conv.groups, kernel.shape[1:-1]
    x = _padded(_features_first(x, conv), conv)
    features, batch = x.shape[0], x.shape[-1]
    strides = [math.prod(x.shape[i + 1 :]) for i in range(1 + len(sizes))]
    steps = [s * d for s, d in zip(strides[1:], conv.kernel_dilation, strict=True)]
    starts = [s * d for s, d in zip(strides[1:], conv.strides, strict=True)]
    lead = (groups,) if groups > 1 else ()
    patches = mx.as_strided(
        mx.contiguous(x),  # MLX 0.32 takes a crop of one row for contiguous, and fails when it runs
        (*lead, features, *window, *sizes, batch),
        (*(batch for _ in lead), strides[0], *steps, *starts, 1),
    )
    inner = features * math.prod(window)
    patches = mx.reshape(patches, (*lead, inner, math.prod(sizes) * batch))
    out = matrix_product(_weights(kernel, lead, inner), patches, dtype)
    out = mx.reshape(out, (kernel.shape[0], *sizes, batch))
    return mx.swapaxes(out, 0, -1)


def _features_first(x: mx.array, conv: Convolution) -> mx.array:
    """[batch, *spatial, features] as [features, *spatial, batch], or [.., groups, batch] where there are groups."""
    if conv.batch_groups > 1:
        x = mx.unflatten(x, 0, (conv.batch_groups, -1))
        return mx.transpose(x, (x.ndim - 1, *range(2, x.ndim - 1), 0, 1))
    if conv.feature_groups > 1:
        x = mx.unflatten(x, -1, (conv.feature_groups, -1))
        return mx.transpose(x, (x.ndim - 1, *range(1, x.ndim - 2), x.ndim - 2, 0))
    return mx.swapaxes(x, 0, -1)


def _weights(kernel: mx.array, lead: Sequence[int], inner: int) -> mx.array:
    """[out, *window, features] as [*groups, out per group, features * window]."""
    if not lead:
        weights = mx.transpose(kernel, (kernel.ndim - 1, *range(1, kernel.ndim - 1), 0))
        return mx.swapaxes(mx.reshape(weights, (inner, -1)), -1, -2)
    weights = mx.unflatten(kernel, 0, (*lead, -1))
    weights = mx.transpose(weights, (0, weights.ndim - 1, *range(2, weights.ndim - 1), 1))
    return mx.swapaxes(mx.reshape(weights, (*lead, inner, -1)), -1, -2)
