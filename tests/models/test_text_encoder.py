"""Texts to vectors: batches, pooling, what lies beside the weights, and files that are wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_cases
import numpy as np
import pytest
import tokenizers
from family_cases import LENGTHS, tokens
from safetensors.numpy import load_file, save_file
from tiny_families import TinyFamily
from tokenizers import models, pre_tokenizers
from typer.testing import CliRunner, Result

from m2ml.cli import app
from m2ml.inference import Pooling, TextEncoder, load
from m2ml.models import CheckpointError
from m2ml.models.saving_family import convert_family
from m2ml.models.tokenizer import Tokenizer, saved

TEXTS = [" ".join(f"w{i}" for i in row[:length]) for row, length in zip(tokens(), LENGTHS, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = family_cases.write(tmp_path / "model", family_cases.golden()["bert"])
    rust = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.enable_padding(length=128)  # as sentence encoders' files have it
    saved(Tokenizer(rust), folder)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_vectors_are_pooled_from_the_tokens_of_their_own_text(
    folder: Path, tiny_family_of: Callable[[str], TinyFamily]
) -> None:
    """Means and first tokens of what transformers gives, whatever texts are read together."""
    bound = tiny_family_of("bert").bound
    rows = [np.asarray(row, float)[:length] for row, length in zip(bound.expected, LENGTHS, strict=True)]
    means, firsts = np.stack([row.mean(0) for row in rows]), np.stack([row[0] for row in rows])
    model = load(folder, backend="cpu")
    # A mean moves by no more than the largest error of what it is of, and by its own rounding.
    room = float(np.max(bound.allowed)) * 2 + 13 * 2**-24 * np.abs(means).max()
    for texts, order in ((TEXTS, [0, 1]), ([TEXTS[1], TEXTS[0], TEXTS[1]], [1, 0, 1])):
        np.testing.assert_allclose(model.encode(texts, pooling=Pooling("mean", False)), means[order], rtol=0, atol=room)
    np.testing.assert_allclose(model.encode(TEXTS, pooling=Pooling("cls", False)), firsts, rtol=0, atol=room)
    normal = model.encode(TEXTS, batch=1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(normal, means / lengths, rtol=0, atol=4 * room / lengths.min())
    assert model.encode([]).shape == (0, 24)


def test_what_lies_beside_the_weights_decides(folder: Path) -> None:
    def write(path: str, value: Any) -> None:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value))

    assert load(folder).pooling == Pooling("mean", True)
    parts = [
        {"type": f"sentence_transformers.models.{n}", "path": p} for n, p in (("Transformer", ""), ("Pooling", "1"))
    ]
    write("modules.json", parts)
    write("1/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True})
    write("sentence_bert_config.json", {"max_seq_length": 5})
    model = load(folder)
    assert model.pooling == Pooling("cls", False)
    np.testing.assert_array_equal(model.encode(TEXTS[0]), model.encode(" ".join(TEXTS[0].split()[:5])))
    write("1/config.json", {"pooling_mode_max_tokens": True})
    with pytest.raises(CheckpointError, match=r"says pooling_mode 'max'; m2ml pools by mean or cls"):
        load(folder)
    write("1/config.json", {})
    write("modules.json", [*parts, {"type": "sentence_transformers.models.Dense", "path": "2"}])
    with pytest.raises(CheckpointError, match=r"modules\.json names Dense, a module that m2ml does not have"):
        load(folder)
    write("modules.json", {"a": 1})
    with pytest.raises(CheckpointError, match=r"modules\.json is no list of modules"):
        load(folder)


def test_what_is_wrong_is_said(folder: Path) -> None:
    name, path = "bert.encoder.layer.1.attention.self.key.weight", folder / "model.safetensors"
    whole, kept = load_file(path), (folder / "config.json").read_text()
    for change, said in (
        ({name: None}, "has no tensor encoder.layer.1.attention.self.key.weight"),
        ({"bert.odd": np.ones(2, np.float32)}, "tensor bert.odd of .* has no place in this model"),
        ({name: whole[name][:-1]}, rf"tensor {name} of .* has shape \[23, 24\]"),
        ({name: whole[name] * np.float32(np.nan)}, f"tensor {name} of .* holds nan at element 0"),
    ):
        save_file({k: v for k, v in {**whole, **change}.items() if v is not None}, path)
        with pytest.raises(CheckpointError, match=said):
            load(folder)
    save_file(whole, path)
    for values, said in (
        ({"model_type": "rwkv"}, "has model_type 'rwkv'; m2ml reads bert, clip, "),
        ({"hidden_size": None}, "does not say hidden_size"),
        ({"num_attention_heads": 5}, "describes no bert model: .* multiple of heads; got 24 and 5"),
        ({"hidden_act": "odd"}, "says hidden_act 'odd'; known are gelu"),
        ({"is_decoder": True}, "says is_decoder 'True'; m2ml reads encoders without it"),
    ):
        (folder / "config.json").write_text(json.dumps(json.loads(kept) | values))
        with pytest.raises(CheckpointError, match=said):
            load(folder)


def test_damaged_files_are_refused_in_a_sentence(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole, rng, refused = path.read_bytes(), random.Random(5), list[str]()
    size = int.from_bytes(whole[:8], "little")
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.randrange(size + 8)] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            load(folder, backend="reference")
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert not any("\n" in said for said in refused)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_lies_beside_the_weights_is_refused_in_a_sentence(folder: Path, name: str) -> None:
    path, rng, refused = folder / name, random.Random(9), list[str]()
    whole = path.read_bytes()
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(10)]
    for _ in range(50):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] = rng.randrange(256)
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            load(folder, backend="reference")
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(str(folder) in said and "\n" not in said for said in refused)


def test_a_folder_is_written_with_all_that_it_has(folder: Path, tmp_path: Path) -> None:
    from m2ml.models.checkpoints import open_checkpoint

    convert_family(open_checkpoint(folder), tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert any(name.startswith("cls.") for name in after)  # a head that encoding does not read
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    found = [load(path, backend="cpu").encode(TEXTS) for path in (folder, tmp_path / "again")]
    np.testing.assert_array_equal(*found)
    assert run("convert", folder, tmp_path / "half", "--dtype", "bfloat16").exit_code == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half = load(tmp_path / "half", backend="cpu").encode(TEXTS)
    assert np.all(np.sum(half * found[0], axis=1) > 1 - 2**-8)
    assert "m2ml quantises language models only" in run("quantize", folder, tmp_path / "no").stderr


def test_the_command_compares_texts(folder: Path, tmp_path: Path) -> None:
    plain = run("embed", folder, *TEXTS, "--backend", "cpu", "--out", tmp_path / "vectors.npy")
    assert plain.exit_code == 0, plain.output
    vectors = np.load(tmp_path / "vectors.npy")
    lines = plain.stdout.splitlines()
    assert [line.split()[2:] for line in lines] == [text.split() for text in TEXTS]
    cosines = [[float(x) for x in line.split()[:2]] for line in lines]
    np.testing.assert_allclose(cosines, vectors @ vectors.T, atol=6e-5)  # four places
    found = json.loads(run("embed", folder, *TEXTS, "--backend", "cpu", "--json").stdout)
    np.testing.assert_array_equal(np.array([one["vector"] for one in found["results"]], np.float32), vectors)
    for arguments, said in (
        (("embed", tmp_path / "nowhere", "a"), "a folder with config.json, or minilm or efficientnet-lite0"),
        (("embed", folder, "w1", "--pooling", "max"), "m2ml: a text's vector is its mean or cls; got 'max'"),
        (("embed", folder, "w1", "--out", tmp_path / "no" / "x.npy"), "cannot be written: No such file"),
    ):
        wrong = run(*arguments)
        assert (wrong.exit_code, said in wrong.stderr) == (2, True), wrong.output
        assert len(wrong.stderr.strip().splitlines()) == 1


def test_half_precision_is_computed_in(folder: Path) -> None:
    found: TextEncoder = load(folder, backend="cpu", dtype="bfloat16")
    assert found.encode(TEXTS).dtype == np.float32
    exact = load(folder, backend="cpu").encode(TEXTS)
    assert np.all(np.sum(found.encode(TEXTS) * exact, axis=1) > 1 - 2**-7)
    with pytest.raises(CheckpointError, match="computes in float32, bfloat16, float16; got int8"):
        load(folder, dtype="int8")
