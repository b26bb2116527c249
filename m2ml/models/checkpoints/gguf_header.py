"""The header of a GGUF file: metadata and where tensors lie.

Read here and not by the ``gguf`` package, whose reader takes seconds for a tokenizer of 50,000 words and believes every
length it reads; nothing here reads beyond the file or makes more of it than it holds.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2ml.models.checkpoints.mapped import MappedFile
from m2ml.models.settings import CheckpointError, check_name

MAGIC, VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9

#: Metadata type -> NumPy dtype of a scalar.
_SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip

#: Tensor type -> its name, the elements of a block and its bytes.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class Stored:
    """A tensor: its type's name, its shape with the longest stride first, and where its bytes are."""

    type: str
    shape: tuple[int, ...]
    start: int
    bytes: int


class Texts(Sequence[str]):
    """Strings that stay in the file until they are asked for, each behind the eight bytes of its length."""

    def __init__(self, view: memoryview, ends: array.array[int]) -> None:
        self._view, self._ends = view, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        start = self._ends[i - 1] if i else 0
        return str(self._view[start + 8 : self._ends[i]], "utf-8", "replace")

    def listed(self) -> list[str]:
        """All of them, many times faster than one by one: as one text, with a NUL in place of each length."""
        data, starts = np.frombuffer(self._view, np.uint8).copy(), np.zeros(len(self), np.int64)
        starts[1:] = self._ends[:-1]
        data[starts] = 0
        kept = np.ones(data.size, np.bool_)
        kept[starts[:, None] + np.arange(1, 8)] = False
        found = data[kept].tobytes().decode("utf-8", "replace").split("\0")[1:]
        return found if len(found) == len(self) else list(self)  # one of them holds a NUL


@dataclass(frozen=True)
class Header:
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_header(file: MappedFile) -> Header:
    """Raises `CheckpointError` where the file is cut short, or its header cannot be true."""
    cursor = _Cursor(file)
    if cursor.take(4, "the magic") != MAGIC:
        raise CheckpointError(f"{file.path} is not a GGUF file: it does not begin with GGUF")
    version = cursor.number("<u4", "the version")
    if version not in VERSIONS:
        raise CheckpointError(f"{file.path} has GGUF version {version}; m2ml reads {' and '.join(map(str, VERSIONS))}")
    tensors, pairs = cursor.number("<u8", "the number of tensors"), cursor.number("<u8", "the number of metadata")
    cursor.check_count(tensors, 24, "tensors")
    cursor.check_count(pairs, 13, "metadata")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string("a metadata key")
        check_name(key, "metadata", file.path)
        if key in metadata:
            raise CheckpointError(f"{file.path} has the metadata {key[:80]!r} twice")
        metadata[key] = cursor.value(cursor.number("<u4", f"the type of {key[:80]}"), key)
    infos = [_info(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{file.path} has general.alignment {alignment!r}; it must be a power of two")
    start = -(-cursor.at // alignment) * alignment
    return Header(metadata, _placed(file, infos, start))


class _Cursor:
    """A place in a file, from which values are taken; nothing beyond the end."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0

    def take(self, count: int, what: str) -> bytes:
        end = self.at + count
        if end > len(self.file):
            raise CheckpointError(
                f"{self.file.path} is cut short or lies: {what} at byte {self.at} needs {count:,} bytes,"
                f" of which there are {max(len(self.file) - self.at, 0):,}"
            )
        found = self.file.bytes(self.at, end)
        self.at = end
        return found

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold."""
        if count * least > len(self.file) - self.at:
            raise CheckpointError(f"{self.file.path} is cut short or lies: it speaks of {count:,} {what}")

    def number(self, dtype: str, what: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize, what), dtype)[0].item()

    def string(self, what: str) -> str:
        length = self.number("<u8", f"the length of {what}")
        return self.take(length, what).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind != _ARRAY or depth > 1:
            raise CheckpointError(f"{self.file.path} has metadata {what[:80]!r} of the unknown type {kind}")
        inner, count = self.number("<u4", what), self.number("<u8", what)
        if inner in _SCALARS:
            dtype = np.dtype(_SCALARS[inner])
            self.check_count(count, dtype.itemsize, f"elements of {what[:80]}")
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        self.check_count(count, 8, f"elements of {what[:80]}")
        if inner == _STRING:
            return self._texts(count, what)
        return [self.value(inner, what, depth + 1) for _ in range(count)]

    def _texts(self, count: int, what: str) -> Texts:
        """Many short strings; what follows them is looked at once."""
        rest, at, length_at = self.file.view(self.at), 0, struct.Struct("<Q").unpack_from
        ends = array.array("Q")
        try:
            for _ in range(count):
                at += 8 + length_at(rest, at)[0]
                ends.append(at)
        except (struct.error, OverflowError):  # there is no length at `at`, or no number of bytes so large
            at = len(rest) + 1
        if at > len(rest):
            raise CheckpointError(f"{self.file.path} is cut short in the strings of {what[:80]}")
        self.at += at
        return Texts(rest[:at], ends)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("the name of a tensor")
    check_name(name, "a tensor", cursor.file.path)
    axes = cursor.number("<u4", f"the axes of {name[:80]}")
    if axes > 4:
        raise CheckpointError(
            f"{cursor.file.path} says that tensor {name[:80]} has {axes} axes; at most 4 are possible"
        )
    shape = tuple(cursor.number("<u8", f"the shape of {name[:80]}") for _ in range(axes))
    kind, offset = cursor.number("<u4", f"the type of {name[:80]}"), cursor.number("<u8", f"the place of {name[:80]}")
    return name, shape[::-1], kind, offset


def _placed(file: MappedFile, infos: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name, shape, kind, offset in infos:
        where = f"tensor {name[:80]} of {file.path}"
        if name in found:
            raise CheckpointError(f"{where} is there twice")
        if kind not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            raise CheckpointError(f"{where} has the type {kind}; m2ml reads {known}")
        type_, block, size = TYPES[kind]
        count = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
        if shape and shape[-1] % block:
            raise CheckpointError(f"{where} has rows of {shape[-1]}; {type_} takes multiples of {block}")
        needed = count // block * size
        if start + offset + needed > len(file):
            raise CheckpointError(
                f"{where} is cut short: its {needed:,} bytes of shape {list(shape)} end beyond the file"
            )
        found[name] = Stored(type_, shape, start + offset, needed)
    return found
