"""Quantised weights on the host: their numbers, and how far they are from the ones they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from m2ml.ops import Quantized
from m2ml.ops.quantize import FP4


def dequantized(value: Quantized) -> np.ndarray[Any, Any]:
    """The numbers of a `Quantized` array of NumPy ones, in float32."""
    groups = host_codes(value).reshape(*value.scales.shape, value.group_size)
    if value.mode == "mxfp4":
        found = FP4[groups] * np.exp2(value.scales.astype(np.float32) - 127)[..., None]
    else:
        scales, biases = (x.astype(np.float32)[..., None] for x in (value.scales, value.biases))
        found = groups.astype(np.float32) * scales + biases
    return np.asarray(found.reshape(value.shape))


def host_codes(value: Quantized) -> np.ndarray[Any, Any]:
    """The codes uint8 ``[*b, n]`` of a `Quantized` array of NumPy ones."""
    bits, stream = value.bits, np.ascontiguousarray(value.packed).view(np.uint8)
    if 8 % bits == 0:
        each = stream[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
        return (each & np.uint8(2**bits - 1)).reshape(value.shape)
    each = np.unpackbits(stream, axis=-1, bitorder="little").reshape(*value.shape, bits)
    return np.asarray(np.packbits(each, axis=-1, bitorder="little")[..., 0])
