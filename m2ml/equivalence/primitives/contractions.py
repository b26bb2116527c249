"""Cases of contractions, convolutions and Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from jax import lax

from m2ml.equivalence.primitives.cases import Case, covers, public
from m2ml.equivalence.primitives.values import COMPLEX, FLOATS, INTEGERS, Draw, array, coin, dtype_among, one_of

#: Lengths of axes, seldom 0.
LENGTHS = (3, 2, 7, 1, 3, 2, 7, 1, 0)


@covers("dot_general")
def dot_general(draw: Draw, name: str) -> Case:
    """Any number of batch, contracted and free axes, in any order on both sides."""
    dtype = dtype_among(draw, *FLOATS, *INTEGERS, *COMPLEX, "bool")
    lengths = (one_of(draw, 2, 3, 7),) if coin(draw) else LENGTHS  # all alike: a mix-up of axes shows in no shape
    batch = [one_of(draw, *lengths) for _ in range(one_of(draw, *range(0, 3)))]
    inner = [one_of(draw, *lengths) for _ in range(one_of(draw, *range(0, 3)))]
    sides = []
    for _ in range(2):
        free = [one_of(draw, *lengths) for _ in range(one_of(draw, *range(0, 3)))]
        sizes = [*batch, *inner, *free]
        place = draw(st.permutations(range(len(sizes))))
        shape = [0] * len(sizes)
        for axis, size in zip(place, sizes, strict=True):
            shape[axis] = size
        sides.append((shape, place[len(batch) : len(batch) + len(inner)], place[: len(batch)]))
    (left, left_inner, left_batch), (right, right_inner, right_batch) = sides
    numbers = ((left_inner, right_inner), (left_batch, right_batch))
    preferred = one_of(draw, None, None, "float32" if dtype in FLOATS else "int32" if dtype in INTEGERS else None)
    arrays = [
        array(draw, shape, dtype, finite=True, scales=(1.0, 1e-3, 20.0), copy=i)
        for i, shape in enumerate((left, right))
    ]
    return lambda x, y: lax.dot_general(x, y, numbers, preferred_element_type=preferred), arrays


@covers("ragged_dot", "ragged_dot_general")
def ragged_dot(draw: Draw, name: str) -> Case:
    rows, inner, columns, groups = (one_of(draw, *range(1, 6)) for _ in range(4))
    sizes = np.random.default_rng(draw(st.integers(0, 99))).multinomial(rows, np.full(groups, 1 / groups))
    left = array(draw, (rows, inner), "float32", finite=True)
    right = array(draw, (groups, inner, columns), "float32", finite=True)
    return public("ragged_dot"), [left, right, sizes.astype(np.int32)]


@covers("conv_general_dilated")
def convolution(draw: Draw, name: str) -> Case:
    """One to three spatial axes, strides, dilations, padding (negative too), groups and any order of axes."""
    rank, groups = one_of(draw, *range(1, 4)), one_of(draw, *range(1, 4))
    by_batch = coin(draw)
    batch_groups, feature_groups = (groups, 1) if by_batch else (1, groups)
    batch, inputs = one_of(draw, *range(1, 3)) * batch_groups, one_of(draw, *range(1, 4)) * feature_groups
    outputs = one_of(draw, *range(1, 3)) * groups
    kernel = [one_of(draw, *range(1, 4)) for _ in range(rank)]
    spatial = [draw(st.integers(1, 6 if rank < 3 else 3)) for _ in range(rank)]
    strides, lhs_dilation, rhs_dilation = ([one_of(draw, *range(1, 4)) for _ in range(rank)] for _ in range(3))
    padding = []
    for n, k, inside, outside in zip(spatial, kernel, lhs_dilation, rhs_dilation, strict=True):
        short = (k - 1) * outside - (n - 1) * inside
        low = draw(st.integers(-1 if n > 2 else 0, 3))
        padding.append((low, max(one_of(draw, *range(-1, 4)), short - low)))
    orders = [draw(st.permutations(range(rank + 2))) for _ in range(3)]
    numbers = lax.ConvDimensionNumbers(*(tuple(order) for order in orders))
    left = _placed([batch, inputs, *spatial], orders[0])
    right = _placed([outputs, inputs // feature_groups, *kernel], orders[1])
    dtype = dtype_among(draw, *FLOATS, "int32", "int8", *COMPLEX)

    def convolve(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            numbers,
            feature_group_count=feature_groups,
            batch_group_count=batch_groups,
        )

    return convolve, [
        array(draw, shape, dtype, finite=True, scales=(1.0, 20.0), copy=i) for i, shape in enumerate((left, right))
    ]


def _placed(sizes: list[int], order: list[int]) -> list[int]:
    shape = [0] * len(sizes)
    for size, axis in zip(sizes, order, strict=True):
        shape[axis] = size
    return shape


@covers("fft")
def fft(draw: Draw, name: str) -> Case:
    kind = one_of(draw, "FFT", "IFFT", "RFFT", "IRFFT")
    axes = one_of(draw, *range(1, 4))
    lead = [one_of(draw, 1, 3) for _ in range(one_of(draw, *range(0, 2)))]
    lengths = tuple(one_of(draw, 1, 2, 5, 8, 12) for _ in range(axes))
    shape = [*lead, *lengths]
    if kind == "IRFFT":
        shape[-1] = lengths[-1] // 2 + 1
    x = array(draw, shape, "float32" if kind == "RFFT" else "complex64", finite=True)
    return lambda x: lax.fft(x, kind, lengths), [x]


@covers("scaled_dot")
def scaled_dot(draw: Draw, name: str) -> Case:
    function, rows, columns = public("scaled_dot"), one_of(draw, *range(1, 5)), one_of(draw, *range(1, 5))
    shapes = ((2, rows, 8), (2, 8, columns), (2, rows, 2), (2, 2, columns))
    arrays = [array(draw, shape, "bfloat16", finite=True, low=-2.0, high=2.0) for shape in shapes]
    arrays = [np.where(np.abs(x.astype(np.float32)) < 1e-3, np.ones_like(x), x) for x in arrays]
    return lambda x, y, s, t: function(x, y, lhs_scale=s, rhs_scale=t, preferred_element_type=np.float32), arrays
