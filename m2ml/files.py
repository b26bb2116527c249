"""Files and folders that are there whole or not at all, whatever moment the process is killed at."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A hidden file or folder beside ``target``, which takes its name when the block ends well. Raises OSError."""
    with scratch(target, folder=folder) as hidden:
        yield hidden
        if folder:
            readable_as_usual(hidden)
        for path in (*(hidden.iterdir() if folder else ()), hidden):
            _flush(path)
        hidden.replace(target)


@contextlib.contextmanager
def scratch(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A hidden file or folder beside ``target``, gone when the block ends; first, what killed processes left goes.

    Whoever works in one holds a lock on it, which ends with the process. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError), _locked(left):
            _remove(left)
    hidden = target.with_name(f".{target.name}.{os.getpid()}.partial")
    hidden.mkdir() if folder else hidden.touch(exist_ok=False)
    try:
        with _locked(hidden):
            yield hidden
    finally:
        _remove(hidden)


def readable_as_usual(folder: Path) -> None:
    """Give the files in ``folder`` the mode that new files have: safetensors makes its own for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock on ``path``. Raises BlockingIOError where another does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """What was written is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
