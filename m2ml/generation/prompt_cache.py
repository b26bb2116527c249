"""A session's cache on disk, so that a long prompt is read once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as packed

import m2ml
from m2ml.files import whole
from m2ml.generation.language_model import LanguageModel
from m2ml.generation.session import Session
from m2ml.models.checkpoints.folder import DTYPES, checked_header
from m2ml.models.checkpoints.mapped import MappedFile
from m2ml.models.settings import CheckpointError

_FORMAT = 1


def save_session(session: Session, path: str | Path) -> None:
    """Write what the session has read to ``path``, in place of what was there, whole or not at all."""
    path = Path(path)
    leaves = {f"cache/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(m2ml.get(session.cache)))}
    record = {
        "format": _FORMAT,
        "model": _fingerprint(session.model),
        "tokens": session.tokens,
        "capacity": session.capacity,
        "bits": session.bits,
    }
    content = packed({**leaves, "last": np.asarray(m2ml.get(session._last))}, {"session": json.dumps(record)})
    try:
        with whole(path) as hidden:
            hidden.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"the prompt cache {path} cannot be written: {error.strerror}") from error


def load_session(model: LanguageModel, path: str | Path) -> Session:
    """The session that was saved at ``path``, on whichever backend. Raises `CheckpointError` for another model's."""
    path = Path(path)
    header = checked_header(path)
    record = _record(path)
    if record.get("format") != _FORMAT or record.get("model") != _fingerprint(model):
        raise CheckpointError(f"the prompt cache {path} was made for another model than {model.name}; make it anew")
    tokens, file = record["tokens"], MappedFile(path)
    session = Session(model, len(tokens), cache_bits=record["bits"])
    session.reserve(record["capacity"])
    start = 8 + int.from_bytes(file.bytes(0, 8), "little")

    def array(name: str, like: Any) -> Any:
        entry = header.get(name)
        if entry is None or tuple(entry["shape"]) != like.shape or DTYPES.get(entry["dtype"]) != like.dtype:
            raise CheckpointError(f"the prompt cache {path} is damaged: {name} is not what this model keeps")
        return np.array(file.array(like.dtype, start + entry["data_offsets"][0], like.shape))

    like, tree = jax.tree.flatten(m2ml.get(session.cache))
    host = jax.tree.unflatten(tree, [array(f"cache/{i}", x) for i, x in enumerate(like)])
    session.tokens = [[int(token) for token in row] for row in tokens]
    session.cache = m2ml.put(host, model.backend)
    session._last = m2ml.put(array("last", m2ml.get(session._last)), model.backend)
    return session


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        said = json.loads(file.read(size)).get("__metadata__", {}).get("session", "{}")
    try:
        record: dict[str, Any] = json.loads(said)
    except ValueError as error:
        raise CheckpointError(f"the prompt cache {path} is damaged: its record is not JSON") from error
    return record


def _fingerprint(model: LanguageModel) -> str:
    """What keys and values depend on: the configuration, and the first layer's norm as a sign of the weights."""
    digest = hashlib.sha256(repr(replace(model.config, dtype="")).encode() + model.config.dtype.encode())
    first = jax.tree.leaves(model.params["norm"])[0]
    digest.update(np.asarray(m2ml.get(first)).astype(np.float32).tobytes())
    return digest.hexdigest()
