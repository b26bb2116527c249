"""Readers of the image files a user may pass: ``.npz`` and IDX (the format of MNIST)."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from m2ml.data.errors import DataError

Array = np.ndarray[Any, Any]
#: Images and their labels.
Labelled = tuple[Array, Array]

#: Names of (images, labels) in an .npz: ours, then those of Keras's mnist.npz.
_TRAIN_NAMES = (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"))
_TEST_NAMES = (("test_images", "test_labels"), ("x_test", "y_test"))

#: The third byte of an IDX file: its element type, big-endian.
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(path: Path) -> list[Labelled]:
    """The pairs of an ``.npz``: those to train on and, if there are any, those to test with."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz of plain arrays: {' '.join(str(error).split())}") from error
    pairs = [next((pair for pair in names if set(pair) <= found.keys()), None) for names in (_TRAIN_NAMES, _TEST_NAMES)]
    if pairs[0] is None:
        raise DataError(f"{path} needs arrays called images and labels; it holds {', '.join(found) or 'none'}")
    return [(found[images], found[labels]) for images, labels in filter(None, pairs)]


def read_idx(path: Path) -> list[Labelled]:
    """The pairs of a folder of IDX files, or of the one file of images that is named."""
    if path.is_file():
        return [_pair(path)]
    files = sorted(file for file in path.iterdir() if "images" in file.name and "idx" in file.name)
    tests = [file for file in files if file.name.startswith(("t10k", "test"))]
    trains = [file for file in files if file not in tests]
    if len(trains) != 1 or len(tests) > 1:
        raise DataError(
            f"{path} must hold one file like train-images-idx3-ubyte.gz, its labels, and perhaps a t10k or test pair;"
            f" found {', '.join(file.name for file in files) or 'none'}"
        )
    return [_pair(file) for file in (*trains, *tests)]


def _pair(images: Path) -> Labelled:
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == images or not labels.is_file():
        raise DataError(
            f"{images} must be an .npz, or an IDX file such as train-images-idx3-ubyte.gz with its labels beside it"
        )
    return _idx_array(images), _idx_array(labels)


def _idx_array(path: Path) -> Array:
    """The array in an IDX file: two zero bytes, element type, number of axes, big-endian sizes, data."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise DataError(f"{path} is not an IDX file: it does not begin with the IDX header")
    dtype, axes = np.dtype(_IDX_TYPES[content[2]]), content[3]
    sizes, data = content[4 : 4 + 4 * axes], content[4 + 4 * axes :]
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").astype(int).tolist()
    if len(shape) != axes or len(data) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path} is cut short or damaged: {len(data)} bytes of data do not fill the shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
