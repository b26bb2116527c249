"""A file mapped into memory, whose pages can be let go once they are read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from m2ml.models.settings import CheckpointError


class MappedFile:
    """Read-only bytes of a file. Raises `CheckpointError` where it cannot be opened or is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is empty"
            raise CheckpointError(f"{path} cannot be read: {said}") from error

    def __len__(self) -> int:
        return len(self._map)

    def array(self, dtype: Any, start: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """A view of the file as an array; nothing is copied."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, start).reshape(shape)

    def bytes(self, start: int, end: int) -> bytes:
        return self._map[start:end]

    def view(self, start: int) -> memoryview:
        """The bytes from ``start`` on, not copied."""
        return memoryview(self._map)[start:]

    def release(self) -> None:
        """Let go of the pages that were read: they come back from the file where they are read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
