"""Memory for weights: copies that lie apart, aligned, and as they were."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from m2ml.models import room


def test_copies_are_aligned_and_apart(monkeypatch) -> None:
    monkeypatch.setattr(room, "_BLOCK", 1000)
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (), (0, 4), (7,), (50, 40), (2, 2, 2)]  # one of them larger than a block
    dtypes = (np.float32, np.uint32, np.float16, ml_dtypes.bfloat16, np.uint8)
    given = [np.asarray(rng.integers(0, 99, shape)).astype(dtype) for shape in shapes for dtype in dtypes]
    keep = room.Room()
    kept = [keep.copy(x) for x in given]
    for x, y in zip(given, kept, strict=True):
        assert y.dtype == x.dtype
        assert not y.flags.writeable
        assert y.ctypes.data % 64 == 0 or not y.size
        np.testing.assert_array_equal(y, x)


def test_memory_comes_in_large_pages_from_a_whole_one_on() -> None:
    block = room._in_large_pages(3 << 20)
    assert block.size == 3 << 20
    assert block.ctypes.data % room._PAGE == 0
    block[:] = 1  # all of it is there
