"""What every kind of checkpoint gives: a configuration, tensors by name, and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from m2ml.models.settings import CheckpointError, Settings
from m2ml.models.spelling import Spelling

#: Endings of files that hold pickles, which can run code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint(Protocol):
    """Weights on disk, read where they lie."""

    path: Path
    settings: Settings

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors by name; of quantised ones, what they stand for."""

    @property
    def spelling(self) -> Mapping[str, Spelling]:
        """Names of tensors by ``model_type``."""

    def read(self, name: str) -> Any:
        """A tensor: a NumPy view of the file, or a `Quantized` array of NumPy ones. Raises `CheckpointError`."""

    def where(self, name: str) -> str:
        """``tensor NAME of FILE``, for errors."""

    def release(self) -> None:
        """Let go of the memory of what was read."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``, a folder or a ``.gguf`` file. Raises `CheckpointError` for anything else."""
    path = Path(path)
    if path.is_dir():
        from m2ml.models.checkpoints.folder import Folder

        return Folder(path)
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}; give a folder with config.json, or a .gguf file")
    if path.suffix == ".gguf":
        from m2ml.models.checkpoints.gguf_file import GGUFFile

        return GGUFFile(path)
    said = "a pickle can run code when it is read; " if path.suffix in PICKLES else ""
    raise CheckpointError(
        f"{path} is neither a folder nor a .gguf file; {said}give a folder with config.json and safetensors"
    )
