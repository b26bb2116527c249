"""The oldest macOS that a library asks for, read from the file itself; the tag of a wheel may say less.

Mach-O: the load command LC_BUILD_VERSION (or the older LC_VERSION_MIN_MACOSX) of the arm64 part. Metal libraries
(``MTLB``): the target in their header. Both are read on any system.
"""

from __future__ import annotations

import struct
from pathlib import Path

#: Files whose makers wrote into them which macOS they need.
SUFFIXES = (".dylib", ".so", ".metallib")

_MACH_O, _UNIVERSAL = 0xFEEDFACF, 0xCAFEBABE
_ARM64, _MACOS = 0x0100000C, 1
_BUILD_VERSION, _VERSION_MIN_MACOSX = 0x32, 0x24
_METAL_MACOS = 0x81

#: No sane file has more bytes of load commands.
_MOST = 1 << 20


def minimum_macos(path: Path) -> str | None:
    """``"27.0"``, or None where the file says nothing, is of another kind, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_MOST)
            if head[:4] == b"MTLB":
                return _metal_library(head)
            offset = _arm64_part(head)
            if offset:
                file.seek(offset)
                head = file.read(_MOST)
        return _mach_o(head)
    except (OSError, struct.error):
        return None


def _metal_library(head: bytes) -> str | None:
    system, major, minor, patch = struct.unpack_from("<BHBB", head, 11)
    return _version(major, minor, patch) if system == _METAL_MACOS and major else None


def _arm64_part(head: bytes) -> int:
    """Where the arm64 part of a universal file begins; 0 for any other file."""
    magic, count = struct.unpack_from(">II", head, 0)
    if magic != _UNIVERSAL:
        return 0
    parts = (struct.unpack_from(">IIIII", head, 8 + 20 * i) for i in range(min(count, 16)))
    return next((offset for kind, _, offset, _, _ in parts if kind == _ARM64), 0)


def _mach_o(head: bytes) -> str | None:
    if struct.unpack_from("<I", head, 0)[0] != _MACH_O:
        return None
    (count,) = struct.unpack_from("<I", head, 16)
    offset = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", head, offset)
        if command == _BUILD_VERSION and struct.unpack_from("<I", head, offset + 8)[0] == _MACOS:
            return _packed(struct.unpack_from("<I", head, offset + 12)[0])
        if command == _VERSION_MIN_MACOSX:
            return _packed(struct.unpack_from("<I", head, offset + 8)[0])
        if size < 8:
            return None
        offset += size
    return None


def _packed(version: int) -> str:
    return _version(version >> 16, version >> 8 & 0xFF, version & 0xFF)


def _version(major: int, minor: int, patch: int) -> str:
    return f"{major}.{minor}.{patch}" if patch else f"{major}.{minor}"
