"""GGUF's blocks of quantised numbers as `Quantized` arrays: the same codes in MLX's order, the same scales.

Exact for Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and MXFP4. Q2_K, Q3_K and Q6_K have groups of 16, which the affine
form lacks: those become 8 bits in groups of 32, and how far that moves them is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from m2ml.ops import Quantized

Array = np.ndarray[Any, Any]

#: Blocks of which no affine form is exact.
INEXACT = ("Q2_K", "Q3_K", "Q6_K")

#: Bytes of blocks that are looked at together: what a piece becomes on its way is several times as large.
_PIECE = 1 << 18


def quantized(type_: str, blocks: Array, shape: tuple[int, ...]) -> Quantized:
    """``blocks`` uint8 ``[rows, bytes]`` of an exact type as the array of ``shape`` that they stand for."""
    return _filled((_of_rows(type_, piece) for piece in _pieces(blocks)), len(blocks), shape)


def _of_rows(type_: str, blocks: Array) -> Quantized:
    packed, bits, scales, biases = _READERS[type_](blocks)
    packed, scales, biases = (None if x is None else x.reshape(len(blocks), -1) for x in (packed, scales, biases))
    return Quantized(packed, scales, biases, bits, 32, "mxfp4" if type_ == "MXFP4" else "affine")


def _pieces(blocks: Array) -> list[Array]:
    """``blocks`` in pieces of some rows each, one at the least."""
    rows = max(1, _PIECE // max(blocks.shape[1], 1))
    return [blocks[start : start + rows] for start in range(0, len(blocks), rows)] or [blocks]


def _filled(pieces: Iterable[Quantized], rows: int, shape: tuple[int, ...]) -> Quantized:
    """Pieces of a matrix of so many ``rows``, one below the other, as the array of ``shape``; held once."""
    whole: dict[str, Array] = {}
    at, piece = 0, None
    for piece in pieces:
        for name in ("packed", "scales", "biases"):
            part = getattr(piece, name)
            if part is None:
                continue
            dtype = np.result_type(part, whole.get(name, part))
            if name not in whole:
                whole[name] = np.empty((rows, part.shape[1]), dtype)
            elif whole[name].dtype != dtype:
                whole[name] = whole[name].astype(dtype)
            whole[name][at : at + len(part)] = part
        at += len(piece.packed)
    assert piece is not None
    shaped: dict[str, Any] = {name: x.reshape(*shape[:-1], x.shape[1]) for name, x in whole.items()}
    return dataclasses.replace(piece, **shaped)


def _words(codes: Array, bits: int) -> Array:
    """Codes uint8 ``[..., 32]`` as a stream of bits, lowest first, uint32 ``[..., bits]``."""
    words = np.zeros((*codes.shape[:-1], bits), np.uint32)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        code = codes[..., i].astype(np.uint32)
        words[..., word] |= code << np.uint32(shift)
        if shift + bits > 32:
            words[..., word + 1] |= code >> np.uint32(32 - shift)
    return words


def _side_by_side(columns: Array) -> Array:
    """Columns of bytes ``[blocks, n]`` without what stands between them: copied ``n`` at a time, not one by one."""
    return columns.view(np.dtype((np.void, columns.shape[1]))).copy().view(np.uint8)


def _nibbles(halves: Array) -> Array:
    """Bytes ``[blocks, n]`` that hold a code in the lower half and the one ``n`` places on in the upper: the same codes
    in order, uint32 ``[blocks, n / 4]``.
    """
    pairs = _side_by_side(halves).view(np.uint16)
    ordered = np.empty((len(halves), 2), np.dtype((np.void, halves.shape[1] // 2)))
    for i, codes in enumerate((pairs & np.uint16(0x0F0F), (pairs >> np.uint16(4)) & np.uint16(0x0F0F))):
        codes |= codes >> np.uint16(4)
        ordered[:, i] = codes.astype(np.uint8).view(ordered.dtype)[:, 0]
    return ordered.view(np.uint32)


def _float16(blocks: Array, at: int) -> Array:
    """The float16 that begins at byte ``at`` of each block, ``[blocks, 1]``."""
    return blocks[:, at : at + 2].view(np.float16).copy()


def _halves(nibbles: Array) -> Array:
    """Codes of 16 bytes each: their lower halves, then their upper ones; eight at a time."""
    eight, low = _side_by_side(nibbles).view(np.uint64), np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.concatenate([eight & low, eight >> np.uint64(4) & low], axis=-1).view(np.uint8)


def _fifth_bits(words: Array) -> Array:
    """The fifth bit of 32 codes, from 4 bytes."""
    return np.unpackbits(_side_by_side(words), axis=-1, bitorder="little") << 4


def _q4_0(raw: Array) -> Any:
    blocks = raw.reshape(-1, 18)
    scales = _float16(blocks, 0)
    return _nibbles(blocks[:, 2:]), 4, scales, scales * np.float16(-8)


def _q4_1(raw: Array) -> Any:
    blocks = raw.reshape(-1, 20)
    return _nibbles(blocks[:, 4:]), 4, _float16(blocks, 0), _float16(blocks, 2)


def _q5_0(raw: Array) -> Any:
    blocks = raw.reshape(-1, 22)
    scales = _float16(blocks, 0)
    return _words(_halves(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), 5), 5, scales, scales * np.float16(-16)


def _q5_1(raw: Array) -> Any:
    blocks = raw.reshape(-1, 24)
    return _words(_halves(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8]), 5), 5, _float16(blocks, 0), _float16(blocks, 2)


def _q8_0(raw: Array) -> Any:
    blocks = raw.reshape(-1, 34)
    scales = _float16(blocks, 0)
    biases = scales.astype(np.float32) * np.float32(-128)
    if np.abs(biases).max(initial=0) <= np.finfo(np.float16).max:  # then they are exact, too
        biases = biases.astype(np.float16)
    packed = _side_by_side(blocks[:, 2:]).view(np.uint32)
    packed ^= np.uint32(0x80808080)
    return packed, 8, scales, biases


def _mxfp4(raw: Array) -> Any:
    blocks = raw.reshape(-1, 17)
    return _nibbles(blocks[:, 1:]), 4, blocks[:, 0], None


def _k_scales(blocks: Array) -> tuple[Array, Array]:
    """Scales and biases, float32 ``[blocks, 8]``, of the sub-blocks of a K-quant of 4 or 5 bits."""
    d, least = _float16(blocks, 0).astype(np.float32), _float16(blocks, 2).astype(np.float32)
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    biases = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return d * scales, -(least * biases)


def _q4_k(raw: Array) -> Any:
    blocks = raw.reshape(-1, 144)
    return _nibbles(blocks[:, 16:].reshape(-1, 32)), 4, *_k_scales(blocks)


def _q5_k(raw: Array) -> Any:
    blocks = raw.reshape(-1, 176)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    each = blocks[:, 48:].reshape(-1, 4, 32)
    codes = np.stack([each & 15, each >> 4], axis=2).reshape(-1, 8, 32)
    return _words(codes | fifth, 5), 5, *_k_scales(blocks)


_READERS: Mapping[str, Callable[[Array], Any]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "MXFP4": _mxfp4,
}


def requantized(type_: str, blocks: Array, shape: tuple[int, ...]) -> tuple[Quantized, float]:
    """An inexact type as 8 bits in groups of 32, and the largest change relative to the largest number."""
    import gguf
    import jax

    from m2ml import ops
    from m2ml.models.quantisation import dequantized

    largest = change = 0.0

    def of_rows(blocks: Array) -> Quantized:
        nonlocal largest, change
        numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_])
        if not np.isfinite(numbers).all():
            numbers = np.nan_to_num(numbers, nan=np.nan)
        found = jax.tree.map(np.asarray, ops.quantize(numbers, bits=8, group_size=32))
        largest = max(largest, float(np.abs(numbers).max(initial=0)))
        change = max(change, float(np.abs(dequantized(found) - numbers).max(initial=0)))
        return found

    return _filled(map(of_rows, _pieces(blocks)), len(blocks), shape), change / (largest or 1.0)
