"""Ways to spoil a model: its bytes, its settings, the header and the tensors of its files."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

#: What stands in the place of a value.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**40)),
    *(0.5, -0.0, 1e-300, 1e38, 1e308, float("nan"), float("inf"), "", "x", "silu", "\u0000", "x" * 3000, "../../x"),
    *([], {}, [[]], [0], [-1, 2**40], {"a": 1}, ["x"] * 100, [None], {"rope_type": "yarn"}, "1", "{%", "{{ 1 / 0 }}"),
)


def damage(path: Path, rng: random.Random) -> str:
    """Do something to a model; what was done."""
    if path.is_file():
        return spoil_bytes(path, rng)
    files = sorted(p for p in path.iterdir() if p.is_file())
    tensors = [p for p in files if p.suffix == ".safetensors"]
    settings = [p for p in files if p.suffix == ".json"]
    way = rng.randrange(10)
    if way < 4:
        chosen = path / "config.json" if rng.random() < 0.6 else rng.choice(settings)
        return spoil_json(chosen, rng)
    if way < 6:
        return spoil_header(rng.choice(tensors), rng)
    if way < 8:
        return spoil_tensors(rng.choice(tensors), rng)
    return spoil_bytes(rng.choice(tensors if way == 8 else files), rng)


def spoil_bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    ways = rng.randrange(5)
    # Most of what can lie stands at the beginning.
    end = len(content) if rng.random() < 0.3 else min(len(content), 4000)
    at = rng.randrange(max(end, 1))
    if ways == 0:
        del content[rng.randrange(len(content)) :]
    elif ways == 1:
        del content[at : at + rng.choice((1, 2, 8))]
    elif ways == 2:
        content[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    elif ways == 3:
        content[at : at + 8] = rng.choice((2**63, 2**40, 2**31, 2**64 - 1, 0)).to_bytes(8, "little")
    else:
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(max(end, 1))] = rng.randrange(256)
    path.write_bytes(content)
    return f"bytes of {path.name}, {ways} at {at}"


def spoil_json(path: Path, rng: random.Random) -> str:
    tree = json.loads(path.read_text(encoding="utf-8"))
    said = spoil_tree(tree, rng)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"{path.name}: {said}"


def spoil_tree(tree: Any, rng: random.Random) -> str:
    places = list(nodes(tree))
    said = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        parent, key = rng.choice(places)
        value = copy.deepcopy(rng.choice(HOSTILE))
        if isinstance(parent, dict) and rng.random() < 0.2:
            parent.pop(key, None)
            said.append(f"no {key}")
        elif isinstance(parent, dict) or key < len(parent):
            parent[key] = value
            said.append(f"{key} = {str(value)[:60]}")
    return ", ".join(said)


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def spoil_header(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    said = spoil_tree(header, rng)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + size :])
    return f"header of {path.name}: {said}"


def spoil_tensors(path: Path, rng: random.Random) -> str:
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    x, way = tensors[name], rng.randrange(8)
    if way == 0:
        del tensors[name]
    elif way == 1:
        tensors["odd.weight"] = x
    elif way == 2:
        tensors[name] = x[:-1].copy() if x.ndim else x.reshape(1)
    elif way == 3:
        tensors[name] = x.astype(rng.choice((np.int32, np.float16, np.float64, np.bool_, ml_dtypes.bfloat16, np.uint8)))
    elif way == 4 and x.size and x.dtype.kind == "f":
        x = x.copy()
        x.reshape(-1)[rng.randrange(x.size)] = rng.choice((np.nan, np.inf, -np.inf))
        tensors[name] = x
    elif way == 5:
        tensors[name] = np.ascontiguousarray(x.T)
    elif way == 6:
        tensors[name] = x[..., None].copy()
    else:
        tensors[name] = np.zeros((0, *x.shape[1:]), x.dtype)
    save_file(tensors, path)
    return f"{path.name}: {name}, {way}"
