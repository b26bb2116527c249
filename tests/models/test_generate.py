"""Generation: the same tokens as without a cache, on every backend, in batches, across growing caches."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tiny_models import BACKENDS, Tiny
from tokenizers import models, pre_tokenizers

import m2ml
from m2ml.errors import M2mlError
from m2ml.generation import Session, generate, load, session
from m2ml.generation.conversation import Conversation
from m2ml.generation.garbage import collected_later
from m2ml.generation.language_model import LanguageModel
from m2ml.generation.stopping import StopStrings
from m2ml.models import decoder
from m2ml.models.settings import CheckpointError
from m2ml.models.tokenizer import Tokenizer, from_folder, saved

PROMPTS = ([3, 14, 15, 9, 2, 6, 5, 35, 8, 9], [2, 7, 18], [1])


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and caches so small that a short text crosses them, and chunks of which the last layer works on all."""
    monkeypatch.setattr(decoder, "_FEW", 2)
    monkeypatch.setattr(session, "CHUNK", 4)
    monkeypatch.setattr(session, "_SIZES", (1, 2, 4))
    monkeypatch.setattr(session, "_CAPACITIES", (8, 16))


@pytest.fixture(scope="session")
def model_of(tiny_of: Callable[[str], Tiny]) -> Callable[[str, str], LanguageModel]:
    return functools.cache(lambda name, backend: load(tiny_of(name).folder, backend=backend))


def without_cache(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens by the whole text each time, padded to one length so that it is one program."""
    tokens, length = list(prompt), len(prompt) + count
    for _ in range(count):
        row = np.array([[*tokens, *[0] * (length - len(tokens))]])
        tokens.append(int(np.argmax(m2ml.get(model(row))[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


def test_a_text_that_grows_beyond_the_original_context_is_read_as_a_long_one(
    model_of: Callable[[str, str], LanguageModel],
) -> None:
    model = model_of("phi3, longrope", "cpu")
    generation = generate(model, PROMPTS[0], max_tokens=12)
    list(generation)
    for i in (6, 7, 11):  # texts of 16 tokens, the last short one, of 17 and 21
        text = [*PROMPTS[0], *generation.tokens[0][:i]]
        assert int(np.argmax(m2ml.get(model([text]))[0, -1])) == generation.tokens[0][i]


#: Rings and whole layers; that mlx writes the same the fast suite sees by equal seeds.
CASES = [("gemma3_text", "cpu"), pytest.param("qwen3", "mlx", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_batch_writes_what_each_prompt_alone_gives(
    name: str, backend: str, model_of: Callable[[str, str], LanguageModel]
) -> None:
    model = model_of(name, backend)
    generation = generate(model, PROMPTS, max_tokens=9)
    pieces = list(generation)
    assert generation.tokens == [without_cache(model_of(name, "cpu"), list(p), 9) for p in PROMPTS]
    assert generation.ended == ["length"] * 3
    assert [piece.row for piece in pieces[:6]] == [0, 1, 2, 0, 1, 2]
    assert generation.statistics.tokens == 27
    assert generation.statistics.prompt_tokens == 14


def test_equal_seeds_draw_equal_tokens_on_every_backend(model_of: Callable[[str, str], LanguageModel]) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.01}

    def drawn(backend: str, seed: int) -> list[list[int]]:
        generation = generate(model_of("qwen3", backend), PROMPTS[:2], seed=seed, **settings)
        assert all(piece.text == "" for piece in generation)  # it has no tokenizer
        return generation.tokens

    assert drawn("cpu", 3) == drawn("mlx", 3) == drawn("cpu", 3)
    assert drawn("cpu", 3) != drawn("cpu", 4)


def test_eight_bits_of_keys_and_values_are_nearly_all(tmp_path: Path) -> None:
    """Heads of 32, which a group needs: logits move by no more than steps of 1/255 of a head's range can move them."""
    import tiny_checkpoints

    from m2ml.models.kv_cache import make_cache

    golden = tiny_checkpoints.golden()["qwen3"]
    heads = golden["config"] | {"head_dim": 32}
    rows = {"q_proj": 128, "k_proj": 64, "v_proj": 64}
    shapes = {}
    for name, shape in golden["tensors"].items():
        part = name.split(".")[-2]
        shapes[name] = [rows[part], shape[1]] if part in rows else [shape[0], 128] if part == "o_proj" else shape
        shapes[name] = [32] if part in ("q_norm", "k_norm") else shapes[name]
    folder = tiny_checkpoints.write(tmp_path / "model", {"config": heads, "tensors": shapes})
    model = load(folder, backend="cpu")
    exact, packed = Session(model, room=16), Session(model, room=16, cache_bits=8)
    for one in (exact, packed):
        one.read([PROMPTS[0]])
    a, b = (np.asarray(m2ml.get(one._last)) for one in (exact, packed))
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()
    assert packed.cache.layers[0].keys.bits == 8
    with pytest.raises(ValueError, match="heads of a multiple of 32; got 10"):
        make_cache(load_config("qwen3"), 1, 8, bits=8)


def load_config(name: str) -> Any:
    import tiny_checkpoints

    from m2ml.models.architectures import decoder_config

    return decoder_config(tiny_checkpoints.golden()[name]["config"], name)


def test_a_session_reads_only_what_is_new(model_of: Callable[[str, str], LanguageModel]) -> None:
    model = model_of("qwen3", "cpu")
    talk = Session(model)
    first = generate(model, PROMPTS[0], max_tokens=4, session=talk)
    assert "".join(piece.text for piece in first) == ""
    longer = [*PROMPTS[0], *first.tokens[0], 4, 5]
    assert talk.tokens == [longer[:-2]]
    for prompt in (longer, [*longer[:12], 7, 7]):  # goes on, and then says otherwise
        again = generate(model, prompt, max_tokens=5, session=talk)
        assert again.text() == ""
        assert again.tokens == [without_cache(model, prompt, 5)]


def test_what_cannot_be_written_is_said(model_of: Callable[[str, str], LanguageModel]) -> None:
    model = model_of("gpt2", "cpu")
    for arguments, said in (
        (([1, 61],), "prompt 0 has the token 61; this model's are 0 to 60"),
        (([1] * 33,), "prompt 0 comes to 33 tokens, but .* was made for 32"),
        (([[1], []],), "prompt 1 has no tokens"),
        (([],), "there is no prompt"),
        (("text",), "has no tokenizer"),
    ):
        with pytest.raises(M2mlError, match=said):
            generate(model, *arguments).text()
    with pytest.raises(M2mlError, match=r"top_p is 1\.5; it must be above 0 and at most 1"):
        generate(model, [1], top_p=1.5)
    with pytest.raises(M2mlError, match="max_tokens is 0"):
        generate(model, [1], max_tokens=0)
    whole = generate(model, [1] * 30, max_tokens=10)
    whole.text()
    assert whole.ended == ["context"]
    assert len(whole.tokens[0]) == 2


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_as_before_once_it_is_left(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    switched = [collects]
    monkeypatch.setattr(gc, "isenabled", lambda: switched[-1])
    monkeypatch.setattr(gc, "enable", lambda: switched.append(True))
    monkeypatch.setattr(gc, "disable", lambda: switched.append(False))
    with collected_later():
        assert not gc.isenabled()
    assert gc.isenabled() == collects


def test_stop_strings_may_come_in_pieces() -> None:
    stops = StopStrings(["</end>", "STOP"])
    assert stops("hello </e") == ("hello ", False)
    assert stops("x") == ("</ex", False)
    assert stops(" ST") == (" ", False)
    assert stops("OP and more") == ("", True)
    assert StopStrings([])("all") == ("all", False)
    held = StopStrings(["abc"])
    assert held("zab") == ("z", False)
    assert held.rest() == "ab"


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """A tokenizer of whole words, saved and read back."""
    names = {f"w{i}": i for i in range(59)} | {"<end>": 59, "<begin>": 60}
    rust = tokenizers.Tokenizer(models.WordLevel(names, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens(["<end>", "<begin>"])
    template = (
        "{% for m in messages %}<begin> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<begin>{% endif %}"
    )
    special = {"bos_token": "<begin>", "eos_token": "<end>"}
    saved(Tokenizer(rust, frozenset({59}), 60, template, special), tmp_path)
    found = from_folder(tmp_path, {})
    assert found is not None
    return found


def test_a_tokenizer_comes_back_from_its_folder(words: Tokenizer, tmp_path: Path) -> None:
    assert words.ends == {59}
    assert words.encode("w3 w4") == [60, 3, 4]
    assert words.decode([60, 3, 4, 59]) == "w3 w4"
    messages = [{"role": "user", "content": "w5"}]
    assert words.conversation(messages) == "<begin> w5 <begin>"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer that m2ml reads"):
        from_folder(tmp_path, {})


def test_a_template_can_touch_nothing(words: Tokenizer) -> None:
    from dataclasses import replace

    for template, said in (
        ("{{ messages.__class__.__mro__ }}", "the model's chat template failed"),
        ("{{ raise_exception('roles must alternate') }}", "failed: roles must alternate"),
        ("{% for i in range(10**9) %}{% endfor %}", "failed: Range too big"),
        ("{% if %}", "the model's chat template failed"),
    ):
        with pytest.raises(CheckpointError, match=said):
            replace(words, template=template).conversation([])
    with pytest.raises(CheckpointError, match="has no chat template"):
        replace(words, template=None).conversation([])


def test_a_conversation_goes_on(words: Tokenizer, model_of: Callable[[str, str], LanguageModel]) -> None:
    from dataclasses import replace

    for name in ("qwen3", "gemma3_text"):
        model = replace(model_of(name, "cpu"), tokenizer=words)
        talk = Conversation(model, system="w9")
        first = talk.ask("w5 w6", max_tokens=3).text()
        assert [m["role"] for m in talk.messages] == ["system", "user", "assistant"]
        asked = [*talk.messages, {"role": "user", "content": "w7"}]
        alone = generate(model, words.encode_conversation(asked), max_tokens=3)
        assert talk.ask("w7", max_tokens=3).text() == alone.text()
        assert talk.messages[2]["content"] == first


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "gemma2", "gpt2", "olmo2", "smollm3", "gpt_neox"])
def test_every_architecture_writes(name: str, backend: str, model_of: Callable[[str, str], LanguageModel]) -> None:
    generation = generate(model_of(name, backend), PROMPTS, max_tokens=9)
    generation.text()
    assert generation.tokens == [without_cache(model_of(name, "cpu"), list(p), 9) for p in PROMPTS]


def test_what_was_read_is_kept_for_another_time(model_of: Callable[[str, str], LanguageModel], tmp_path: Path) -> None:
    """Saved on one backend, gone on with on another; refused for another model."""
    from m2ml.generation import load_session, save_session

    path = tmp_path / "prompt.safetensors"
    for name in ("qwen3", "gemma3_text"):
        model = model_of(name, "cpu")
        kept = Session(model)
        kept.read([PROMPTS[0][:-1]])
        save_session(kept, path)
        again = load_session(model_of(name, "mlx"), path)
        assert again.tokens == [PROMPTS[0][:-1]]
        generation = generate(again.model, PROMPTS[0], max_tokens=4, session=again)
        generation.text()
        assert generation.tokens == [without_cache(model, PROMPTS[0], 4)]
    assert [p.name for p in tmp_path.iterdir()] == ["prompt.safetensors"]
    with pytest.raises(CheckpointError, match="was made for another model than"):
        load_session(model_of("qwen3", "cpu"), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"prompt\.safetensors is not a whole safetensors file"):
        load_session(model, path)
