"""Drawing tokens on Metal: one launch in place of a sort, sums and some thirty operations on the whole vocabulary."""

from __future__ import annotations

import math
from typing import Any

from m2ml.ops.sample_token import COARSE, FINE, OCTAVE
from m2ml_mlx.kernels.shared import rows_of
from m2ml_mlx.kernels.source import MOST_ELEMENTS, WIDTH, Source

SAMPLE_TOKEN = Source(
    "metal",
    "sample_token",
    ("logits", "bits", "seen", "coarse", "fine", "numbers", "limits"),
    ("token",),
    ("functions.h", "sample_token.h"),
)

#: Threads of a threadgroup at most, and the tokens that each keeps in registers and, of a longer row, in threadgroup
#: memory, which is 32 KiB. Apple's cores have 208 KiB of registers, 128 words a thread at 384 threads, which any kernel
#: may have (philipturner/metal-benchmarks dc2adc6).
THREADS, KEPT, SHARED = 384, 108, 20


#: Arrays of fewer elements are in the constant address space, where the kernel's pointers do not reach.
FEWEST = 8


def sample_token(logits: Any, bits: Any, tokens: Any = None, **static: Any) -> Any:
    import mlx.core as mx

    flat = rows_of(logits)
    rows, size = flat.shape
    penalty, top_k, min_p = static["repetition_penalty"], static["top_k"] or size, static["min_p"]
    penalised = tokens is not None and penalty != 1
    seen = _seen(rows_of(tokens), size) if penalised else mx.zeros((FEWEST,), mx.bool_)
    unit = 2**OCTAVE / math.log(2) / static["temperature"]
    numbers = mx.array([unit, (1 / penalty - 1) * unit, (penalty - 1) * unit, static["top_p"]], mx.float32)
    limits = [min(top_k, size), math.floor(-math.log2(min_p) * 2**OCTAVE) if min_p > 0 else -1]
    group, kept, shared = _layout(size)
    token = SAMPLE_TOKEN(
        *(flat, bits.reshape(-1), seen, *(mx.array(table) for table in (COARSE, FINE)), numbers, mx.array(limits)),
        out=[((rows,), mx.int32)],
        threads=(rows * group, 1, group),
        T=logits.dtype,
        PENALISED=penalised,
        FILTERED=top_k < size or static["top_p"] < 1 or min_p > 0,
        KEPT=kept,
        PLACES=max(shared * group, 1),
    )[0]
    return token.reshape(logits.shape[:-1])


def _layout(size: int) -> tuple[int, int, int]:
    """Threads for a row, the tokens that each keeps in registers, by eights lest sizes compile anew, and those in
    threadgroup memory."""
    group = min(THREADS, WIDTH * math.ceil(size / (4 * WIDTH)))
    steps = math.ceil(size / group)
    return group, min(KEPT, 8 * math.ceil(steps / 8)), min(max(steps - KEPT, 0), SHARED)


def _seen(tokens: Any, size: int) -> Any:
    """Which of the vocabulary are among ``tokens``, by row; what lies outside goes to one place more."""
    import mlx.core as mx

    places = mx.where((tokens < 0) | (tokens >= size), size, tokens).astype(mx.int32)
    found = mx.zeros((len(tokens), size + 1), mx.bool_)
    found[mx.arange(len(tokens))[:, None], places] = True
    return found[:, :size]


def drawn(logits: Any, *rest: Any, temperature: float, **static: Any) -> str:
    """However few rows: it is one launch for some thirty operations."""
    if temperature == 0:
        return "at temperature 0 a maximum is all there is to find"
    if not logits.size:
        return "there are no rows"
    if logits.size < FEWEST:
        return f"fewer than {FEWEST} logits lie in constant memory"
    return "it counts logits in 32 bits" if logits.size >= MOST_ELEMENTS else ""
