"""GGUF: every block type against the gguf package, whole files written by it, and files that lie."""

from __future__ import annotations

import array
import itertools
import random
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import tokens
from tiny_models import Tiny, forward

from m2ml.models.checkpoints import gguf_blocks, open_checkpoint
from m2ml.models.checkpoints.gguf_blocks import INEXACT, quantized, requantized
from m2ml.models.checkpoints.gguf_header import TYPES, Texts
from m2ml.models.gguf_tokenizer import from_gguf
from m2ml.models.loading import config_of, load_params
from m2ml.models.quantisation import dequantized
from m2ml.models.settings import CheckpointError
from m2ml.models.spelling import GGUF
from m2ml.models.weights import sources

BLOCKS = {name: (block, size) for name, block, size in TYPES.values() if block > 1}


def random_blocks(name: str, rows: int = 3, blocks: int = 2) -> np.ndarray[Any, Any]:
    """Blocks of random codes whose scales are ordinary numbers."""
    rng = np.random.default_rng(len(name))
    raw = rng.integers(0, 256, (rows * blocks, BLOCKS[name][1]), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    places = halves.get(name, (0, 2) if name.endswith("_1") else (0,))
    for at in () if name == "MXFP4" else places:
        scale = rng.uniform(0.01, 0.1, len(raw)).astype(np.float16)
        raw[:, at : at + 2] = scale[:, None].view(np.uint8)
    if name == "MXFP4":
        raw[:, 0] = rng.integers(120, 130, len(raw))
    return raw.reshape(rows, -1)


def exact(name: str, raw: np.ndarray[Any, Any]) -> Any:
    """The numbers by the definition of the gguf package."""
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in INEXACT])
def test_blocks_keep_their_numbers(name: str) -> None:
    raw = random_blocks(name)
    wanted = exact(name, raw)
    found = dequantized(quantized(name, raw, wanted.shape))
    # gguf subtracts from a code before it scales it: two roundings of the largest product each.
    largest = 2.0 ** (5 if name.startswith("Q5") else 8) * 0.1 * 64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4 * 2**-24 * largest)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_blocks_say_how_far_they_moved(name: str) -> None:
    raw = random_blocks(name)
    wanted = exact(name, raw)
    found, change = requantized(name, raw, wanted.shape)
    moved = np.abs(dequantized(found) - wanted).max() / np.abs(wanted).max()
    assert 0 < moved <= change <= 2 / 255  # a step of the widest group


@pytest.mark.parametrize("name", BLOCKS)
def test_pieces_are_the_whole_and_little_is_held_beside_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, size = BLOCKS[name]
    raw = random_blocks(name, rows=401, blocks=2048 // block)
    convert = requantized if name in INEXACT else quantized

    def converted(piece: int) -> Any:
        monkeypatch.setattr(gguf_blocks, "_PIECE", piece)
        return jax.tree.leaves(convert(name, raw, (401, 2048)))

    wanted = converted(raw.nbytes)
    tracemalloc.start()
    try:
        found = converted(1 << 16)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, y)
    numbers = (1 << 16) // size * block
    assert peak - held < 4 * 4 * numbers  # of a piece: its numbers, what they become, the difference and its size


def write_gguf(path: Path, tiny: Tiny, architecture: str, *, stored: str = "F32", **more: Any) -> Path:
    """The tiny model as llama.cpp's conversion would write it: matrices as ``stored``, the rest in float32."""
    config, writer = tiny.config, gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_context_length(config.context)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_layer_norm_eps(config.norm_eps)
    rope = config.blocks[0].rope
    if rope is not None:
        writer.add_rope_freq_base(rope.base)
    for key, value in more.items():
        writer.add_key_value(f"{architecture}.{key}", value, gguf.GGUFValueType.UINT32)
    params = tiny.params("reference")
    for source in sources(config, GGUF[architecture]):
        value: Any = params
        for key in source.path:
            value = value[key]
        for tensor, part in zip(source.parts, source.split(value), strict=True):
            shift = config.norm == "rms_plus_one" and tensor.name.endswith("norm.weight")
            plain = np.ascontiguousarray(part, np.float32) + np.float32(shift)
            kind = gguf.GGMLQuantizationType[stored if plain.ndim > 1 else "F32"]
            writer.add_tensor(tensor.name, gguf.quants.quantize(plain, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("gemma2", {"attention.sliding_window": 5}),
        ("phi3", {"attention.sliding_window": 5}),
        ("gpt2", {}),
    ],
)
def test_a_file_gives_the_logits_of_its_folder(
    name: str, more: dict[str, Any], tiny_of: Callable[[str], Tiny], tmp_path: Path
) -> None:
    """Configurations go by other words there, queries and keys by other rows, gemma's norms are stored whole."""
    tiny = tiny_of(name)
    if name == "llama":  # its biases and gemma's scalar have no place in GGUF
        tiny = tiny_of("llama, scaled and tied")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", tiny, name, **more))
    config = config_of(checkpoint)
    params = load_params(checkpoint, config, backend="cpu")
    if name == "llama":
        from dataclasses import replace

        config = replace(config, blocks=tiny.config.blocks)  # llama3's scaling travels as a tensor of factors
    if name == "gemma2":
        from dataclasses import replace

        assert config.norm == "rms"
        config = replace(
            config,
            attention_scale=tiny.config.attention_scale,
            attention_soft_cap=tiny.config.attention_soft_cap,
            logit_soft_cap=tiny.config.logit_soft_cap,
        )
    tiny.hold(forward(config)(params, tokens()))


@pytest.mark.parametrize(("stored", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_precision_is_read_as_it_is(
    stored: str, dtype: Any, tiny_of: Callable[[str], Tiny], tmp_path: Path
) -> None:
    tiny = tiny_of("qwen3")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "half.gguf", tiny, "qwen3", stored=stored))
    found = load_params(checkpoint, config_of(checkpoint), backend="reference")
    wanted = jax.tree.map(lambda x: x.astype(dtype if x.ndim > 1 else x.dtype), tiny.params("reference"))
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_frequencies_may_come_as_factors(tmp_path: Path, tiny_of: Callable[[str], Tiny]) -> None:
    from m2ml import ops

    tiny = tiny_of("llama, scaled and tied")
    rope = tiny.config.blocks[0].rope
    assert rope is not None
    plain, scaled = (ops.rope_frequencies(rope.dims, rope.base, s).inverse for s in (None, dict(rope.scaling)))
    path = write_gguf(tmp_path / "tiny.gguf", tiny, "llama")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "more.gguf", "llama")
    for field in list(reader.fields.values())[3:]:
        if field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "more.gguf")
    config = config_of(checkpoint)
    assert config.blocks[0].rope is not None
    assert len(config.blocks[0].rope.factors) == rope.dims // 2
    tiny.hold(forward(config)(load_params(checkpoint, config, backend="cpu"), tokens()))


def test_files_that_lie_are_refused_in_a_sentence(tmp_path: Path, tiny_of: Callable[[str], Tiny]) -> None:
    """Cut short anywhere, or with bytes of the header changed: refused by name, and never by a crash."""
    whole = write_gguf(tmp_path / "tiny.gguf", tiny_of("gpt2"), "gpt2").read_bytes()
    rng, refused = random.Random(5), list[str]()
    damaged = [whole[: rng.randrange(1, len(whole))] for _ in range(60)]
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(1200)] = rng.randrange(256)
        damaged.append(bytes(changed))
    for huge in (2**63, 2**40, 2**31):
        for at in (8, 16):
            damaged.append(whole[:at] + struct.pack("<Q", huge) + whole[at + 8 :])
    path = tmp_path / "damaged.gguf"
    for content in damaged:
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                load_params(checkpoint, config_of(checkpoint), backend="reference")
            from_gguf(checkpoint.metadata, str(path))  # type: ignore[attr-defined]
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all("damaged.gguf" in said for said in refused)
    assert not any("\n" in said for said in refused)


@pytest.mark.parametrize(
    "words", [[], [b"one"], [b"", b"a b", "Ġä😀".encode(), b"\xf0\x9f", b"\xff", b""], [b"with a \0", b"\0", b"x"]]
)
def test_all_strings_at_once_are_what_each_is(words: list[bytes]) -> None:
    stored = b"".join(struct.pack("<Q", len(word)) + word for word in words)
    texts = Texts(memoryview(stored), array.array("Q", itertools.accumulate(8 + len(word) for word in words)))
    assert texts.listed() == list(texts) == [word.decode("utf-8", "replace") for word in words]


def test_a_sentence_piece_tokenizer_splits_as_its_scores_say() -> None:
    words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "c", "<0x0A>"]
    scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -9.0, 0.0]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 6],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = from_gguf(metadata, "here")
    assert tokenizer is not None
    assert tokenizer.encode("ab c") == [1, 7, 3, 8]
    assert tokenizer.decode([1, 7, 3, 8, 9]) == "ab c\n"
    assert tokenizer.ends == {2}
    with pytest.raises(CheckpointError, match="here has a tokenizer of kind 'rwkv'"):
        from_gguf({**metadata, "tokenizer.ggml.model": "rwkv"}, "here")
