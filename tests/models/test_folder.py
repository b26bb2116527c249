"""Hugging Face folders: every dtype, shards, and files that are wrong, each refused in a sentence that names it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoints
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import tokens
from tiny_models import Tiny, forward

import m2ml
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.loading import config_of, load_params
from m2ml.models.settings import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["qwen3"])


def load(path: Path) -> Any:
    checkpoint = open_checkpoint(path)
    return load_params(checkpoint, config_of(checkpoint), backend="reference")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    case = tiny_checkpoints.golden()["qwen3"]
    name = "model.layers.0.mlp.down_proj.weight"
    for dtype in ("float16", "bfloat16"):
        folder = tiny_checkpoints.write(tmp_path / dtype, case, dtype=dtype)
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
        wanted = tiny_checkpoints.weight(name, tuple(case["tensors"][name])).astype(kind).astype(np.float32)
        found = m2ml.get(load(folder)["blocks"][0]["mlp"]["down"]["weight"])
        np.testing.assert_array_equal(found, wanted)


def test_what_is_wrong_with_a_configuration_is_said(folder: Path) -> None:
    for values, said in (
        ({"model_type": "rwkv"}, "has model_type 'rwkv'; m2ml reads gemma2, "),
        ({"hidden_size": None}, "does not say hidden_size"),
        ({"hidden_size": -3}, "says hidden_size '-3'; it must be a whole number"),
        ({"num_key_value_heads": 3}, "heads must be a multiple of kv_heads; got 4 and 3"),
        ({"hidden_act": "relu9"}, "says hidden_act 'relu9'; known are silu"),
        ({"rope_parameters": {"rope_type": "odd"}}, "says rope_type 'odd'; known are default"),
        ({"intermediate_size": 41}, "has shape .*, but .*config.json asks for"),
        ({"num_hidden_layers": 3, "layer_types": None}, "has no tensor model\\.layers\\.2"),
        ({"num_hidden_layers": 1, "layer_types": None}, "has no place in this model"),
        ({"tie_word_embeddings": False, "vocab_size": 62}, "has shape"),
    ):
        kept = (folder / "config.json").read_text()
        change_config(folder, **values)
        with pytest.raises(CheckpointError, match=said) as caught:
            load(folder)
        assert str(folder) in str(caught.value)
        (folder / "config.json").write_text(kept)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json holds a list; it must be an object"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: No such file"):
        load(folder)


def test_what_is_wrong_with_a_tensor_is_said(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"

    def replaced(value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda tensors: tensors.update({name: value(tensors[name])})

    def spoiled(x: Any) -> Any:
        x = x.copy()
        x[3, 4] = np.nan
        return x

    cases: list[tuple[Callable[[dict[str, Any]], None], str]] = [
        (lambda tensors: tensors.pop(name), f"has no tensor {name}"),
        (lambda tensors: tensors.update(odd=np.ones(2, np.float32)), "tensor odd of .* has no place in this model"),
        (replaced(lambda x: x[:-1].copy()), rf"tensor {name} of .*safetensors has shape \[19, 24\]"),
        (replaced(lambda x: x.astype(np.int32)), f"tensor {name} of .* holds int32"),
        (replaced(spoiled), f"tensor {name} of .* holds nan at element 76"),
        (replaced(lambda x: x + np.inf), f"tensor {name} of .* holds inf at element 0"),
    ]
    for change, said in cases:
        copied = folder.with_name("copy")
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        change_tensors(copied, change)
        with pytest.raises(CheckpointError, match=said):
            load(copied)


def test_pickles_and_strange_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which m2ml does not read"):
        load(folder)
    with pytest.raises(CheckpointError, match="a pickle can run code when it is read"):
        open_checkpoint(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="there is no model at"):
        open_checkpoint(tmp_path / "nowhere")


def test_an_index_names_files_beside_it_only(tmp_path: Path) -> None:
    folder = tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["qwen3"], shards=3)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    for there, said in (
        ("../elsewhere.safetensors", "it must be a .safetensors beside it"),
        ("missing.safetensors", r"missing\.safetensors is not a whole safetensors file"),
        (next(f for f in index["weight_map"].values() if f != file), f"holds the tensor {name}, but it does not"),
    ):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: there}}))
        with pytest.raises(CheckpointError, match=said):
            load(folder)


def test_files_that_lie_are_refused_in_a_sentence(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole, rng, refused = path.read_bytes(), random.Random(3), list[str]()
    size = int.from_bytes(whole[:8], "little")
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(40)]
    damaged += [n.to_bytes(8, "little") + whole[8:] for n in (0, 3, size - 1, size + 1, 2**40, 2**63)]
    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.randrange(size + 8)] = rng.randrange(256)
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            load(folder)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 150
    assert all(str(path) in said or "config.json" in said for said in refused)
    assert not any("\n" in said for said in refused)


def test_gemma3_of_two_halves_reads_its_text(tmp_path: Path, tiny_of: Callable[[str], Tiny]) -> None:
    case = tiny_checkpoints.golden()["gemma3_text"]
    folder = tiny_checkpoints.write(tmp_path / "model", case)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": case["config"], "vision_config": {"hidden_size": 3}})
    )

    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", "language_model.model.", 1)] = tensors.pop(name)
        tensors["vision_tower.patch.weight"] = np.ones((3, 3), np.float32)

    change_tensors(folder, renamed)
    checkpoint = open_checkpoint(folder)
    config = config_of(checkpoint)
    tiny_of("gemma3_text").hold(forward(config)(load_params(checkpoint, config, backend="cpu"), tokens()))
