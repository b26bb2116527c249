"""Pictures: preprocessing as transformers', classes by name, CLIP with texts, and what is wrong said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import family_cases
import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import models, pre_tokenizers, processors
from typer.testing import CliRunner, Result

import m2ml
from m2ml.cli import app
from m2ml.inference import Preprocessing, load
from m2ml.inference.preprocessing import preprocessing_of
from m2ml.models import CheckpointError
from m2ml.models.settings import Settings
from m2ml.models.tokenizer import Tokenizer, saved

LABELS = {str(i): f"kind {i}" for i in range(7)}


def picture(height: int = 37, width: int = 53, seed: int = 1) -> Any:
    """Smooth colours, so that a picture survives being resized."""
    places = np.stack(np.meshgrid(np.linspace(0, 3, height), np.linspace(0, 5, width), indexing="ij"))
    turns = np.random.default_rng(seed).normal(size=(3, 2))
    return np.uint8(127 + 120 * np.sin(np.einsum("ck,khw->hwc", turns, places) + turns[:, 0]))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    case = family_cases.golden()["vit"]
    folder = family_cases.write(tmp_path / "vit", {**case, "config": {**case["config"], "id2label": LABELS}})
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"height": 12, "width": 20}, "resample": 2, "image_mean": 0.5, "image_std": [0.2, 0.3, 0.4]}
        )
    )
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = family_cases.write(tmp_path / "clip", family_cases.golden()["clip"])
    rust = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing(single="$A w60", special_tokens=[("w60", 60)])
    saved(Tokenizer(rust), folder)
    return folder


def test_pictures_are_resized_cropped_and_scaled() -> None:
    image = picture(40, 60)
    exact = Preprocessing(resize=20, crop=(16, 16), resample="bilinear", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    small = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR), np.float64)
    wanted = (small[2:18, 7:23] / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    # Three roundings of float32, each of a number that is at most 10 here.
    np.testing.assert_allclose(exact(image), wanted, rtol=0, atol=3 * 10 * 2**-24)
    grey = Preprocessing(None, (44, 60), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)(image[..., 0])
    np.testing.assert_array_equal(grey[2:-2], np.repeat(image[..., :1], 3, axis=-1))
    assert not grey[[0, 1, -2, -1]].any()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, Preprocessing((12, 20), None, "bilinear")),
        (
            {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": 8, "resample": 3},
            Preprocessing(9, (8, 8)),
        ),
        (
            {"size": 9, "do_center_crop": True, "crop_size": {"height": 8, "width": 7}},
            Preprocessing(9, (8, 7), "bilinear"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, Preprocessing(256, (224, 224))),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}, Preprocessing((384, 384), None)),
        (
            {"do_resize": False, "do_rescale": False, "do_normalize": False},
            Preprocessing(None, None, "bilinear", 1.0, (0.0,) * 3, (1.0,) * 3),
        ),
    ],
)
def test_preprocessor_configurations_are_read(said: dict[str, Any], wanted: Preprocessing) -> None:
    assert preprocessing_of(Settings(said, "preprocessor_config.json"), (12, 20)) == wanted


def test_a_classifier_names_what_it_sees(vit: Path, tmp_path: Path) -> None:
    model = load(vit, backend="cpu")
    guesses = model.classify([picture(), picture(seed=2)], top=7)
    prepared = model.preprocessing.batch([picture(), picture(seed=2)])
    assert prepared.shape == (2, 12, 20, 3)
    logits = np.asarray(m2ml.get(model(prepared)), np.float64)
    for row, found in zip(logits, guesses, strict=True):
        assert [guess.number for guess in found] == np.argsort(-row).tolist()
        assert sum(guess.probability for guess in found) == pytest.approx(1)
        assert found[0].label == LABELS[str(found[0].number)]
    assert model.features([picture()]).shape == (1, 24)
    Image.fromarray(picture()).save(tmp_path / "one.png")
    said = run("classify", vit, tmp_path / "one.png", "--top", 2, "--backend", "cpu")
    assert said.exit_code == 0, said.output
    first, second, third = said.stdout.splitlines()
    assert first == str(tmp_path / "one.png")
    assert [line.split(maxsplit=1)[1] for line in (second, third)] == [guess.label for guess in guesses[0][:2]]
    found = json.loads(run("classify", vit, tmp_path / "one.png", "--json", "--backend", "cpu").stdout)
    best = found["results"][0]["classes"][0]
    assert (best["number"], best["label"]) == (guesses[0][0].number, guesses[0][0].label)


def test_clip_compares_pictures_with_texts(clip: Path, tmp_path: Path) -> None:
    model = load(clip, backend="cpu")
    texts = ["w3 w4", "w7", " ".join(["w5"] * 40)]
    vectors, seen = model.encode_texts(texts), model.encode_images([picture(), picture(seed=2)])
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=(vectors.shape[1] / 2 + 2) * 2**-24)  # of the sum, root and quotient
    scale = np.exp(float(family_cases.weight("logit_scale", ()).astype(np.float64)))
    for row, guesses in zip(scale * seen @ vectors.T, model.classify([picture(), picture(seed=2)], texts), strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        for guess in guesses:
            # Cosines of 20 products, in float32.
            assert guess.probability == pytest.approx(shares[texts.index(guess.label)], abs=scale * 20 * 2**-24)
    Image.fromarray(picture()).save(tmp_path / "one.png")
    said = run("classify", clip, tmp_path / "one.png", "--label", "w3 w4", "--label", "w7", "--backend", "cpu")
    assert {line.split(maxsplit=1)[1] for line in said.stdout.splitlines()[1:]} == {"w3 w4", "w7"}


def test_what_is_wrong_is_said(vit: Path, clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for arguments, said in (
        (("classify", vit, broken), f"m2ml: {broken} is no picture that Pillow reads"),
        (("classify", vit, tmp_path / "none.png"), "none.png cannot be read: No such file or directory"),
        (("classify", vit, broken, "--label", "a"), "has classes of its own; --label is for CLIP"),
        (("classify", clip, broken), "compares pictures with texts; give each with --label TEXT"),
        (("embed", vit, "a"), "is no encoder of text"),
    ):
        found = run(*arguments)
        assert (found.exit_code, said in found.stderr) == (2, True), found.output
        assert len(found.stderr.strip().splitlines()) == 1
    with pytest.raises(
        CheckpointError, match=r"a picture is an array uint8 \[height, width, 3\].*; got float64\[3, 4\]"
    ):
        load(vit).classify([np.zeros((3, 4))])
    with pytest.raises(CheckpointError, match="these differ: 3x4, 5x6"):
        Preprocessing(None, None).batch([picture(3, 4), picture(5, 6)])
    for values, said in (
        ({"resample": 9}, "says resample '9'; it must be one of 0, 1, 2"),
        ({"image_mean": [1, 2]}, "says image_mean .*; it must be a number for red, green and blue each"),
        ({"size": {"height": 3}}, "does not say width"),
    ):
        (vit / "preprocessor_config.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=said):
            load(vit)


def test_the_example_of_the_readme_runs(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = (e for e in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "encoder.encode" in e)
    (tmp_path / "models").mkdir()
    vit.rename(tmp_path / "models" / "vit")
    folder = family_cases.write(tmp_path / "models" / "minilm", family_cases.golden()["bert"])
    rust = tokenizers.Tokenizer(models.WordLevel({"A": 3, "cat": 4, "w0": 0}, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    saved(Tokenizer(rust), folder)
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    written = capsys.readouterr().out.splitlines()
    assert len(written) == 2 + 3
    assert written[2].split()[1] == "kind"
