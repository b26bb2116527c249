"""Checkpoints: a safetensors file of arrays and a JSON record that names it.

The record is the commit: it is replaced atomically after the arrays are safe on disk, and names them by their sha256.
Whatever moment the process is killed at, the record on disk names a complete file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save as pack

import m2ml
from m2ml import compat
from m2ml.errors import M2mlError

RECORD = "checkpoint.json"
FORMAT = 1
_LOSSES = "losses"

Array = np.ndarray[Any, Any]

#: safetensors' own reader to NumPy knows no bfloat16; this gives the bytes of each array.
_deserialize: Any = safetensors.deserialize


class CheckpointError(M2mlError, ValueError):
    """A checkpoint is missing, damaged, or was made for something else."""


@dataclass(frozen=True)
class Record:
    """What the JSON file says. ``run`` describes the run; ``arrays`` lists each array as ``float32[2,3]``."""

    step: int
    run: Mapping[str, Any]
    file: str
    sha256: str
    arrays: Mapping[str, str]
    format: int = FORMAT


def save(folder: Path, state: Any, *, step: int, losses: Array, run: Mapping[str, Any]) -> None:
    """Make ``state`` the checkpoint of ``folder``, in place of the one before.

    ``state`` is any tree of arrays, on any backend: bfloat16 and typed random keys included. ``losses`` is
    float32[step], the run's history.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = {f"state/{name}": m2ml.get(leaf) for name, leaf in named_leaves(state)}
    listing = {name: describe(leaf) for name, leaf in host.items()}
    stored = {name: np.asarray(_stored(leaf), order="C") for name, leaf in host.items()}
    content = pack({**stored, _LOSSES: np.asarray(losses, np.float32)})
    digest = hashlib.sha256(content).hexdigest()
    file = f"step-{step:08d}-{digest[:8]}.safetensors"
    _write(folder / file, content)
    record = Record(step, run, file, digest, listing)
    _write(folder / RECORD, json.dumps(vars(record), indent=1).encode())
    for old in folder.glob("step-*.safetensors"):
        if old.name != file:
            old.unlink()


def _write(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically: a reader sees the old content or the new, even after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint."""
    return (folder / RECORD).exists()


def read_record(folder: Path) -> Record:
    """The record of ``folder``'s checkpoint. Raises `CheckpointError` when it is missing or damaged."""
    path = folder / RECORD
    try:
        record = Record(**json.loads(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{folder} holds no checkpoint: {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is not the record of a checkpoint; start anew elsewhere"
        ) from error
    if record.format != FORMAT:
        raise CheckpointError(f"{path} has format {record.format}, but this version of m2ml reads format {FORMAT}")
    return record


def load(folder: Path, template: Any) -> tuple[Any, Array]:
    """The state and the losses in ``folder``: NumPy arrays and JAX key arrays in the tree of ``template``.

    ``template`` has arrays or `jax.ShapeDtypeStruct` for leaves. Raises `CheckpointError` when a file is missing or
    damaged or when it does not hold exactly the template's arrays.
    """
    record = read_record(folder)
    leaves = [(f"state/{name}", leaf) for name, leaf in named_leaves(template)]
    _check_same(record, {name: describe(leaf) for name, leaf in leaves}, folder)
    arrays = _read_arrays(folder / record.file, record)
    state = [_restored(arrays[name], leaf) for name, leaf in leaves]
    losses = np.frombuffer(arrays[_LOSSES], np.float32)
    return jax.tree.unflatten(jax.tree.structure(template), state), losses


def _check_same(record: Record, wanted: Mapping[str, str], folder: Path) -> None:
    for name in sorted(wanted.keys() | record.arrays.keys()):
        there, here = record.arrays.get(name, "missing"), wanted.get(name, "not used")
        if there != here:
            raise CheckpointError(
                f"the checkpoint in {folder} is of another model: {name} is {there} there and {here} here"
            )


def _read_arrays(path: Path, record: Record) -> dict[str, Any]:
    """The bytes of each array, once the file's hash has proved that it is whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint's arrays {path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise CheckpointError(
            f"the checkpoint's arrays {path} are damaged: the file is not the one that was written"
            f" ({len(content)} bytes, sha256 differs); restore it from a copy or start anew elsewhere"
        )
    return {name: value["data"] for name, value in _deserialize(content)}


def _stored(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if compat.is_key(leaf.dtype) else leaf


def _restored(data: Any, leaf: Any) -> Any:
    aval = compat.physical_aval(leaf)
    array = np.frombuffer(data, aval.dtype).reshape(aval.shape)
    if not compat.is_key(leaf.dtype):
        return array
    return jax.random.wrap_key_data(jnp.asarray(array), impl=compat.key_impl_name(leaf.dtype))


def describe(leaf: Any) -> str:
    """``float32[2,3]``, or ``key<fry>[]`` for typed keys."""
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its path, such as ``params/blocks/0/norm/scale``."""
    return [("/".join(map(_segment, path)), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _segment(entry: Any) -> str:
    return next(str(getattr(entry, kind)) for kind in ("key", "name", "idx") if hasattr(entry, kind))
