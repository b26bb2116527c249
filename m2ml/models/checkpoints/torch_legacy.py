"""Tensors of a file that ``torch.save`` wrote before 1.6, without running the pickles in it.

Such a file is five pickles (magic number, version, system, tensors, keys of storages) and then the storages, a count
and numbers each. The opcodes are walked as data: the few that a dictionary of tensors takes are known here, names
stay names, and anything else is refused. Used for a package whose hash is pinned.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m2ml.models.settings import CheckpointError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch LongStorage": np.dtype("<i8"),
}
_MOST = 2**40  # numbers in a storage
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_ARGUMENT = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "GLOBAL")


@dataclass(frozen=True)
class _Tensor:
    key: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_legacy(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors by name, each contiguous. Raises `CheckpointError` where the file is anything else."""
    try:
        file = io.BytesIO(path.read_bytes())  # it gives what there is, whatever length is asked for
        magic, version, _, tensors, keys = (_value(file) for _ in range(5))
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError("it does not begin as torch begins a file")
        dtypes = {tensor.key: tensor.dtype for tensor in tensors.values()}
        storages = {key: _storage(file, dtypes[key]) for key in keys}
        return {name: _array(storages[tensor.key], tensor) for name, tensor in tensors.items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, DeprecationWarning) as error:
        raise CheckpointError(f"{path} is no file of tensors as torch before 1.6 wrote it: {error}") from error


def _storage(file: BinaryIO, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    count = int.from_bytes(file.read(8), "little")
    if count > _MOST:
        raise ValueError(f"a storage of {count} numbers")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _array(storage: np.ndarray[Any, Any], tensor: _Tensor) -> np.ndarray[Any, Any]:
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, last, *tensor.shape, *tensor.strides)) < 0 or last >= storage.size:
        raise ValueError("a tensor leaves its storage")
    if math.prod(tensor.shape) > storage.size:
        raise ValueError("a tensor has more numbers than its storage")
    strides = [s * storage.itemsize for s in tensor.strides]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides))


def _value(file: BinaryIO) -> Any:
    """What one pickle describes, where it describes a dictionary of tensors, numbers, text and lists of them."""
    machine = _Machine()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # of escapes in a name
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
    (value,) = machine.stack
    return value


class _Machine:
    """The stack that the opcodes work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _ARGUMENT:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
        elif name == "BINPERSID":
            kind, dtype, key, _, _, view = stack.pop()
            if kind != "storage" or view is not None:
                raise ValueError("it refers to something that is no storage")
            stack.append((key, _DTYPES[dtype]))
        elif name in ("SETITEM", "SETITEMS"):
            pairs = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "BUILD":  # the versions of modules, which a dictionary carries
            stack.pop()
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it has the opcode {name}, which a dictionary of tensors does not take")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "collections OrderedDict":
        return {}
    if name != "torch._utils _rebuild_tensor_v2":
        raise ValueError(f"it calls {name}, which a dictionary of tensors does not take")
    (key, dtype), offset, shape, strides = arguments[:4]
    return _Tensor(key, dtype, offset, shape, strides)
