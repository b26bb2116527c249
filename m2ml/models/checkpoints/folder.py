"""Hugging Face folders: ``config.json`` and safetensors, one file or several, perhaps quantised by MLX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from m2ml.errors import in_one_line
from m2ml.models.checkpoints.checkpoint import PICKLES
from m2ml.models.checkpoints.mapped import MappedFile
from m2ml.models.settings import CheckpointError, Settings, check_name
from m2ml.models.spelling import HUGGING_FACE, Spelling
from m2ml.ops import Quantized

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"

#: No configuration or index is larger.
MOST_JSON = 64 << 20

DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
    "U32": np.uint32,
    "I32": np.int32,
    "I64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Stored:
    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    start: int


class Folder:
    """A folder of safetensors. Raises `CheckpointError` where it is damaged or its files do not fit together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = Settings(read_json(path / CONFIG), str(path / CONFIG))
        self._files: list[MappedFile] = []
        self._stored = self._all_tensors()
        self._formats = _formats(self.settings)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, stored in self._stored.items():
            format_ = self._format(name)
            if format_ is not None:
                rows, words = stored.shape[:-1], stored.shape[-1]
                self.shapes[name] = (*rows, words * 32 // format_[0])
            elif not self._belongs_to_quantised(name):
                self.shapes[name] = stored.shape

    @property
    def spelling(self) -> Mapping[str, Spelling]:
        return HUGGING_FACE

    def where(self, name: str) -> str:
        stored = self._stored.get(name)
        return f"tensor {name} of {stored.file.path if stored else self.path}"

    def read(self, name: str) -> Any:
        format_ = self._format(name)
        if format_ is None:
            return self._array(name)
        bits, group_size, mode = format_
        stem = name.removesuffix(".weight")
        biases = self._array(f"{stem}.biases") if mode == "affine" else None
        return Quantized(self._array(name), self._array(f"{stem}.scales"), biases, bits, group_size, mode)

    def release(self) -> None:
        for file in self._files:
            file.release()

    def _array(self, name: str) -> Any:
        if name not in self._stored:
            raise CheckpointError(f"{self.path} has no tensor {name}, which its quantised weights need")
        stored = self._stored[name]
        if stored.dtype not in DTYPES:
            raise CheckpointError(f"{self.where(name)} has dtype {stored.dtype}; m2ml reads {', '.join(DTYPES)}")
        return stored.file.array(DTYPES[stored.dtype], stored.start, stored.shape)

    def _format(self, name: str) -> tuple[int, int, str] | None:
        """Bits, group size and mode of a quantised weight."""
        stem = name.removesuffix(".weight")
        if stem == name or f"{stem}.scales" not in self._stored or self._formats is None:
            return None
        return self._formats.get(stem, self._formats[""])

    def _belongs_to_quantised(self, name: str) -> bool:
        stem, _, part = name.rpartition(".")
        return part in ("scales", "biases") and self._format(f"{stem}.weight") is not None

    def _all_tensors(self) -> dict[str, _Stored]:
        index = self.path / INDEX
        if index.exists():
            return self._of_index(index)
        single = self.path / SINGLE
        if not single.exists():
            pickled = sorted(p.name for p in self.path.iterdir() if p.suffix in PICKLES)
            said = f"; {pickled[0]} is a pickle, which m2ml does not read: save as safetensors" if pickled else ""
            raise CheckpointError(f"{self.path} holds no {SINGLE} and no {INDEX}{said}")
        return self._of_file(single)

    def _of_index(self, index: Path) -> dict[str, _Stored]:
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise CheckpointError(f"{index} has no weight_map from tensors to files")
        found: dict[str, _Stored] = {}
        for file in sorted(set(places.values())):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(f"{index} names the file {file[:80]!r}; it must be a .safetensors beside it")
            found.update(self._of_file(self.path / file))
        for name, file in places.items():
            if name not in found or found[name].file.path.name != file:
                raise CheckpointError(f"{index} says that {file} holds the tensor {name}, but it does not")
        return found

    def _of_file(self, path: Path) -> dict[str, _Stored]:
        header = checked_header(path)
        file = MappedFile(path)
        self._files.append(file)
        size = int.from_bytes(file.bytes(0, 8), "little")
        start = 8 + size
        return {
            name: _Stored(file, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for name, entry in header.items()
        }


def checked_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, once safetensors itself has found that it tells the truth."""
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        said = in_one_line(error)
        raise CheckpointError(f"{path} is not a whole safetensors file: {said[:200]}") from error
    header.pop("__metadata__", None)
    for name in header:
        check_name(name, "a tensor", path)
    return header


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of reasonable size."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise CheckpointError(f"{path} is larger than {MOST_JSON:,} bytes, too large for what it should hold")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; it must be an object")
    return content


def settings_in(path: Path) -> Settings:
    """The object in a JSON file, empty where there is none."""
    return Settings(read_json(path) if path.exists() else {}, str(path))


def _formats(settings: Settings) -> dict[str, tuple[int, int, str]] | None:
    """Bits, group size and mode by module, with the default under ``""``; None where nothing is quantised by MLX."""
    from m2ml.ops.quantize import check_format

    given = settings.part("quantization")
    if not given.values:
        return None
    default = _one_format(given)
    formats = {"": default}
    for name, value in given.values.items():
        if isinstance(value, Mapping):
            formats[name] = _one_format(given.part(name), *default)
    for bits, group_size, mode in formats.values():
        try:
            check_format("quantization", bits, group_size, mode)
        except ValueError as error:
            raise CheckpointError(f"{settings.source}: {error}") from error
    return formats


def _one_format(given: Settings, bits: int = 4, group_size: int = 64, mode: str = "affine") -> tuple[int, int, str]:
    return given.integer("bits", bits), given.integer("group_size", group_size), str(given.get("mode", mode))
