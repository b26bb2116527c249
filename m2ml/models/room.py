"""Memory for weights in large pages: a step of a language model reads all of them, in pages of 4 KiB half as fast."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: A large page, and what is asked of the system at a time; what nobody writes to takes no memory.
_PAGE, _BLOCK = 2 << 20, 256 << 20
#: Arrays begin at multiples of this, so that XLA takes them where they lie.
_ALIGNED = 64


class Room:
    """Copies of arrays, one behind the other, for as long as any of a block is in use."""

    def __init__(self) -> None:
        self._free: Array = np.empty(0, np.uint8)

    def copy(self, array: Array, /, dtype: Any = None) -> Array:
        """A copy of ``array``, in ``dtype`` if one is given, not to be written to."""
        dtype = np.dtype(dtype or array.dtype)
        found = self._take(array.size * dtype.itemsize).view(dtype).reshape(array.shape)
        found[...] = array
        found.flags.writeable = False
        return found

    def _take(self, size: int) -> Array:
        rounded = -(-size // _ALIGNED) * _ALIGNED
        if rounded > self._free.size:
            self._free = _in_large_pages(max(rounded, _BLOCK))
        taken, self._free = self._free[:size], self._free[rounded:]
        return taken


def _in_large_pages(size: int) -> Array:
    """``size`` bytes; in large pages where the system gives them to those who ask."""
    # Shared memory, which mmap gives unless it is told, comes in small pages only.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    room = mmap.mmap(-1, size + _PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            room.madvise(mmap.MADV_HUGEPAGE)
    every: Array = np.frombuffer(room, np.uint8)
    start = -every.ctypes.data % _PAGE
    return every[start : start + size]
