"""Files that lie, of every architecture and reader: read, or refused in one sentence, and never another error."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import family_cases
import gguf
import numpy as np
import pytest
import test_gguf
import tiny_checkpoints
import tokenizers
from damage import damage
from test_saving import wide
from test_torch_legacy import TWO
from tiny_models import tiny
from tokenizers import models, pre_tokenizers

from m2ml.generation import ConversionWarning
from m2ml.inference import load
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.checkpoints.torch_legacy import read_legacy
from m2ml.models.loading import config_of
from m2ml.models.saving import Format, convert
from m2ml.models.settings import CheckpointError
from m2ml.models.tokenizer import Tokenizer, saved

FOLDERS = {f"decoder: {name}": (tiny_checkpoints, case) for name, case in tiny_checkpoints.golden().items()} | {
    f"family: {name}": (family_cases, case) for name, case in family_cases.golden().items()
}
KINDS = (*FOLDERS, "quantised by MLX", "in shards", "gguf: qwen3", "gguf: gemma2", "gguf: gpt2", "torch")
#: Of the families, whose modules take long to make, two read images and one text.
FAST = [k for k in KINDS if k.partition(":")[0] != "family" or k in ("family: bert", "family: vit", "family: resnet")]


def whole(kind: str, place: Path) -> Path:
    """A model of this kind as it should be."""
    place.mkdir(parents=True)
    if kind == "torch":
        path = place / "weights.pth"
        path.write_bytes(TWO)
        return path
    if kind.startswith("gguf"):
        return in_gguf(kind.removeprefix("gguf: "), place)
    if kind == "quantised by MLX":
        return quantised(place)
    module, case = FOLDERS.get(kind, (tiny_checkpoints, tiny_checkpoints.golden()["qwen3"]))
    folder = Path(module.write(place / "model", case, shards=3 if kind == "in shards" else 1))
    saved(words(), folder)
    return folder


def words() -> Tokenizer:
    """As many words as the tiny models know, and a template."""
    rust = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    return Tokenizer(rust, frozenset({2}), None, template, {"eos_token": "w2", "unk_token": "w0"})


def quantised(place: Path) -> Path:
    checkpoint, target = open_checkpoint(wide("qwen3", place / "plain")), place / "model"
    form = Format(4, 32)
    convert(checkpoint, config_of(checkpoint), target, quantise=form, extra=lambda folder: saved(words(), folder))
    return target


def in_gguf(name: str, place: Path) -> Path:
    """A GGUF file with a tokenizer and a template."""
    plain = test_gguf.write_gguf(place / "plain.gguf", tiny(name, place / "tiny"), name)
    reader, target = gguf.GGUFReader(plain), place / "model.gguf"
    writer = gguf.GGUFWriter(target, name)
    for field in reader.fields.values():
        # The writer adds its own of these.
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*map(chr, range(97, 97 + 58)), "ab", "abc", "<end>"])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_token_types([1] * 60 + [3])
    writer.add_eos_token_id(60)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def read(path: Path) -> None:
    """All of it that a user would have read."""
    if path.suffix == ".pth":
        read_legacy(path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        model = load(path, backend="reference")
    tokenizer = getattr(model, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.decode(tokenizer.encode("abc w1 w2"))
        if tokenizer.template is not None:
            tokenizer.encode_conversation([{"role": "user", "content": "w1"}])


def refusals(kind: str, seeds: range, place: Path) -> int:
    """How many of so many damaged models are refused; each must be by a sentence that names what it is about."""
    good, refused = whole(kind, place / "whole"), 0
    read(good)
    for seed in seeds:
        path = place / f"damaged{good.suffix}"
        copy = shutil.copytree if good.is_dir() else shutil.copy
        copy(good, path)
        done = damage(path, random.Random(seed))
        try:
            read(path)
        except CheckpointError as error:
            hold_sentence(str(error), path, f"seed {seed}, {done}: {error}")
            refused += 1
        except BaseException as error:  # what panics in Rust is no Exception
            raise AssertionError(f"{kind}, seed {seed}: {done}") from error
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return refused


def hold_sentence(said: str, path: Path, about: str) -> None:
    assert "\n" not in said, about
    assert len(said) < 800, about
    assert any(named in said for named in (str(path), "template", "tokenizer")), about


@pytest.mark.parametrize("kind", FAST)
def test_a_damaged_model_is_refused_in_a_sentence_or_read(kind: str, tmp_path: Path) -> None:
    assert refusals(kind, range(4), tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_models_are_refused_in_a_sentence_or_read(kind: str, tmp_path: Path) -> None:
    assert refusals(kind, range(1000, 1200), tmp_path) > 50
