"""Runs the C++ kernels outside XLA, in a program of their own that calls them as XLA would (`ffi_driver.cc`).

What stands around them is chosen by the test: another processor, or a sanitizer. The check is the one that every kernel
passes: values and gradients within the bounds of the definition in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import m2ml_cpu.kernels
import ml_dtypes
import numpy as np
from m2ml_kernels import compile_program

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml import kernel, op_primitive
from m2ml.equivalence.ops import Implementation, check_gradient, check_values
from m2ml.op import ops

HERE = Path(__file__).parent
SOURCES = sorted({k.source for k in m2ml_cpu.kernels.KERNELS})
INCLUDE = (jax.ffi.include_dir(), SOURCES[0].parent, HERE)
DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}
NAMES = {bool: "PRED", np.uint8: "U8", np.int32: "S32", np.uint32: "U32", np.int64: "S64", np.float32: "F32"}
NAMES |= {np.float16: "F16", ml_dtypes.bfloat16: "BF16"}
ON = [Implementation("cpu", True)]


class Outside:
    """A file of kernels, or ``body`` in its place, in a process of its own, which ``runner`` starts."""

    def __init__(self, source, flags, runner=(), body=""):
        names = sorted({k.op for k in m2ml_cpu.kernels.KERNELS if k.source == source})
        table = ", ".join(f'{{"{name}", {name}}}' for name in names)
        text = f"""{body or source.read_text()}
        static const struct {{ const char* name; XLA_FFI_Handler* run; }} kHandlers[] = {{{table}}};
        #include "ffi_driver.cc"
        """
        self.path = compile_program(text, flags=flags, include=INCLUDE, name=f"outside {source.name}").path
        self.process = subprocess.Popen([*runner, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, name, out_types, arrays, attributes):
        """The results of a handler, as XLA would hand over its arguments."""
        parts = [text(name), number(len(arrays))]
        for x in arrays:
            parts += [array_head(x.dtype, x.shape, x.nbytes), np.ascontiguousarray(x).tobytes()]
        parts.append(number(len(out_types)))
        sizes = [int(np.prod(y.shape)) * np.dtype(y.dtype).itemsize for y in out_types]
        parts += [array_head(y.dtype, y.shape, size) for y, size in zip(out_types, sizes, strict=True)]
        parts.append(number(len(attributes)))
        for key, value in sorted(attributes.items()):
            parts += [text(key), number(code(value.dtype)), value.tobytes().ljust(8, b"\0")]
        self.process.stdin.write(b"".join(parts))
        self.process.stdin.flush()
        said = self.read(struct.unpack("<q", self.read(8))[0]).decode()
        found = [self.read(size) for size in sizes]
        assert not said, said
        pairs = zip(found, out_types, strict=True)
        return tuple(np.frombuffer(data, np.dtype(y.dtype)).reshape(y.shape) for data, y in pairs)

    def read(self, size):
        data = self.process.stdout.read(size)
        assert len(data) == size, f"the program ended, {self.process.wait(10)}"
        return data

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def number(value):
    return struct.pack("<q", value)


def text(value):
    return number(len(value)) + value.encode()


def code(dtype):
    """XLA's number of a dtype, from its own header."""
    name = next(known for of, known in NAMES.items() if np.dtype(of) == np.dtype(dtype))
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    return int(re.search(rf"XLA_FFI_DataType_{name} = (\d+)", header)[1])


def array_head(dtype, shape, size):
    return b"".join(map(number, (code(dtype), len(shape), *shape, size)))


@contextlib.contextmanager
def in_place_of(source, outside):
    """The kernels of ``source`` are those of ``outside``, and no other kernel is there; gives how often each ran."""
    calls = Counter()

    def handler(file, symbol=""):
        name = symbol or file.stem

        def call(out_types, *arrays, aliases=None, **attributes):
            several = isinstance(out_types, list | tuple)
            outs = tuple(out_types) if several else (out_types,)

            def run(*given):
                calls[name] += 1
                return outside.call(name, outs, [np.asarray(x) for x in given], attributes)

            found = jax.pure_callback(run, outs, *arrays)
            return list(found) if several else found[0]

        return call

    own = m2ml_cpu.kernels.handler, kernel.kernels
    m2ml_cpu.kernels.handler, kernel.kernels = handler, kernel.Kernels()
    for record in m2ml_cpu.kernels.KERNELS:
        if record.source == source:
            kernel.kernels.register(dataclasses.replace(record))
    try:
        _forget_compiled()
        yield calls
    finally:
        m2ml_cpu.kernels.handler, kernel.kernels = own
        _forget_compiled()
        outside.close()


def _forget_compiled():
    jax.clear_caches()
    op_primitive.forget()


def check_file(source, calls):
    """Every kernel of a file on its op's samples: all in float32, every third in half precision."""
    of_file = [k for k in m2ml_cpu.kernels.KERNELS if k.source == source]
    for op in {k.op.removesuffix("_backward"): ops[k.op.removesuffix("_backward")] for k in of_file}.values():
        for i, (name, dtype) in enumerate(DTYPES.items()):
            for sample in list(op.samples())[:: 3 if i else 1]:
                check_values(op, sample, dtype, ON)
            if f"{op.name}_backward" in {k.op for k in of_file if name in k.dtypes}:
                for sample in list(op.samples())[i::4]:
                    check_gradient(op, sample, dtype, ON)
    assert set(calls) == {k.op for k in of_file}, "each kernel ran"
