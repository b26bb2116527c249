"""Files of torch before 1.6, read as data: right ones, ones that lie, and ones that would run something."""

import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from m2ml.models.checkpoints.torch_legacy import read_legacy
from m2ml.models.settings import CheckpointError

HEADER = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
NUMBERS = np.arange(12, dtype=np.float32)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"


def tensor(name: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The opcodes that torch writes of a tensor in the storage "0"."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x0cNtQ"
    rest = b"J" + struct.pack("<i", offset) + numbers(*shape) + numbers(*strides) + b"\x89ccollections\nOrderedDict\n)R"
    return text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def content(*tensors: bytes, count: int = 12) -> bytes:
    described = b"\x80\x02}(" + b"".join(tensors) + b"u."
    return HEADER + described + pickle.dumps(["0"], 2) + struct.pack("<q", count) + NUMBERS.tobytes()


TWO = content(tensor("a", 0, (2, 3), (3, 1)), tensor("b", 6, (3, 2), (1, 3)))


def test_tensors_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(TWO)
    found = read_legacy(path)
    np.testing.assert_array_equal(found["a"], NUMBERS[:6].reshape(2, 3))
    np.testing.assert_array_equal(found["b"], NUMBERS[6:].reshape(2, 3).T)


@pytest.mark.parametrize(
    "damaged",
    [
        content(tensor("a", 7, (2, 3), (3, 1))),
        content(tensor("a", 0, (2, -3), (3, 1))),
        content(tensor("a", 0, (2**20, 2**20), (0, 0))),
        content(tensor("a", 0, (2, 3), (3, 1)), count=2**40),
        content(tensor("a", 0, (2, 3), (3, 1)), count=2**62),
        content(tensor("a", 0, (2, 3), (3, 1)), count=-1),
    ],
    ids=["beyond", "a negative size", "a huge tensor", "a long storage", "a huge one", "a negative one"],
)
def test_sizes_that_lie_are_refused(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"weights\.pth is no file of tensors as torch before 1\.6 wrote it: .+"):
        read_legacy(path)


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """Cut short anywhere, or with bytes changed: refused, or read as tensors, and never by a crash."""
    path, rng, refused = tmp_path / "weights.pth", random.Random(7), list[str]()
    damaged = [TWO[: rng.randrange(len(TWO))] for _ in range(100)]
    for _ in range(3000):
        changed = bytearray(TWO)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(TWO) - NUMBERS.nbytes)] = rng.randrange(256)
        damaged.append(bytes(changed))
    for given in damaged:
        path.write_bytes(given)
        try:
            read_legacy(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 2000
    assert all("weights.pth" in said and "\n" not in said and len(said) < 500 for said in refused)
