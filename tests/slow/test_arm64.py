"""The C++ kernels on arm64: each file compiles for a Mac, and each kernel's NEON code runs on its op's samples.

What zig compiles for arm64 Linux runs under qemu and is called as XLA would call it, through its C interface
(`ffi_driver.cc`). The rest of the check is the one that every kernel passes: values and gradients within the bounds of
the definition in float64. qemu runs the instructions; it says nothing of speed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import m2ml_cpu.kernels
import ml_dtypes
import numpy as np
import pytest
from m2ml_cpu.ffi import FLAGS, source_of
from m2ml_kernels import compile_program, compile_shared

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml import kernel
from m2ml.equivalence.ops import Implementation, check_gradient, check_values
from m2ml.errors import Disagreement
from m2ml.op import ops

HERE = Path(__file__).parent
SOURCES = sorted({k.source for k in m2ml_cpu.kernels.KERNELS})
INCLUDE = (jax.ffi.include_dir(), SOURCES[0].parent, HERE)
DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}
NAMES = {bool: "PRED", np.uint8: "U8", np.int32: "S32", np.uint32: "U32", np.int64: "S64", np.float32: "F32"}
NAMES |= {np.float16: "F16", ml_dtypes.bfloat16: "BF16"}

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module", autouse=True)
def zig(tmp_path_factory):
    """The folder of the package ziglang, fetched where it is not installed."""
    if importlib.util.find_spec("ziglang"):
        yield
        return
    folder = tmp_path_factory.mktemp("zig")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "ziglang"]
    subprocess.run(install, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


def compiler_for(monkeypatch, target, processor):
    monkeypatch.setenv("M2ML_CXX", f"{sys.executable} -m ziglang c++ -target {target} -mcpu={processor}")
    return [flag for flag in FLAGS if flag != "-march=native"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_file_compiles_for_a_mac(monkeypatch, source):
    flags = [*compiler_for(monkeypatch, "aarch64-macos", "apple_m1"), "-Wl,-undefined,dynamic_lookup"]
    built = compile_shared(source, flags=flags, include=INCLUDE, name=f"mac {source.name}").path.read_bytes()
    assert struct.unpack("<II", built[:8]) == (0xFEEDFACF, 0x0100000C)  # Mach-O of 64 bits, arm64
    for op in (k.op for k in m2ml_cpu.kernels.KERNELS if k.source == source):
        assert f"_{op}\0".encode() in built


class Arm:
    """A file of kernels on arm64, under qemu."""

    def __init__(self, monkeypatch, source, body):
        flags = [*compiler_for(monkeypatch, "aarch64-linux-musl", "cortex_a76"), "-static"]
        names = sorted({k.op for k in m2ml_cpu.kernels.KERNELS if k.source == source})
        table = ", ".join(f'{{"{name}", {name}}}' for name in names)
        text = f"""{body or source.read_text()}
        static const struct {{ const char* name; XLA_FFI_Handler* run; }} kHandlers[] = {{{table}}};
        #include "ffi_driver.cc"
        """
        program = compile_program(text, flags=flags, include=INCLUDE, name=f"arm {source.name}").path
        assert struct.unpack("<H", program.read_bytes()[18:20]) == (183,)  # ELF of arm64
        self.process = subprocess.Popen(["qemu-aarch64", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

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


@pytest.fixture
def arm(monkeypatch):
    """The kernels of a file in place of those of this machine; gives the function that puts them there, and a count."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64, which runs arm64 programs, is not installed (apt-get install qemu-user)")
    calls, started = Counter(), []

    def put(source, body=""):
        started.append(Arm(monkeypatch, source, body))

        def handler(file, symbol=""):
            name = symbol or file.stem

            def call(out_types, *arrays, aliases=None, **attributes):
                several = isinstance(out_types, list | tuple)
                outs = tuple(out_types) if several else (out_types,)

                def run(*given):
                    calls[name] += 1
                    return started[-1].call(name, outs, [np.asarray(x) for x in given], attributes)

                found = jax.pure_callback(run, outs, *arrays)
                return list(found) if several else found[0]

            return call

        monkeypatch.setattr(m2ml_cpu.kernels, "handler", handler)
        monkeypatch.setattr(kernel, "kernels", kernel.Kernels())
        for record in m2ml_cpu.kernels.KERNELS:
            if record.source == source:
                kernel.kernels.register(dataclasses.replace(record))
        jax.clear_caches()
        return calls

    yield put
    for one in started:
        one.close()
    jax.clear_caches()


ARM = [Implementation("cpu", True)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_neon_code_agrees_with_the_definition(arm, source):
    calls = arm(source)
    of_file = [k for k in m2ml_cpu.kernels.KERNELS if k.source == source]
    for op in {k.op.removesuffix("_backward"): ops[k.op.removesuffix("_backward")] for k in of_file}.values():
        for i, (name, dtype) in enumerate(DTYPES.items()):
            for sample in list(op.samples())[:: 3 if i else 1]:
                check_values(op, sample, dtype, ARM)
            if f"{op.name}_backward" in {k.op for k in of_file if name in k.dtypes}:
                for sample in list(op.samples())[i::4]:
                    check_gradient(op, sample, dtype, ARM)
    assert set(calls) == {k.op for k in of_file}, "each kernel ran"


def check_every_sample(op):
    for sample in op.samples():
        check_values(op, sample, np.float32, ARM)


#: A kernel that is wrong, or right and writes one number too many.
MISTAKEN = """#include "call.h"
M2ML_KERNEL(swiglu) {{
  const float *gate = call.in(0).data<float>(), *up = call.in(1).data<float>();
  float* y = call.out(0).data<float>();
  for (int64_t i = 0; i < call.out(0).count() + {more}; ++i) y[i] = gate[i] / (1 + std::exp({sign}gate[i])) * up[i];
}}
M2ML_KERNEL(swiglu_backward) {{}}
"""


@pytest.mark.parametrize(
    ("sign", "more", "kind", "said"),
    [("", 0, Disagreement, "swiglu on "), ("-", 1, Exception, "swiglu wrote behind a result")],
    ids=["wrong", "too far"],
)
def test_a_mistake_is_seen(arm, sign, more, kind, said):
    arm(source_of("swiglu"), "#include <cmath>\n" + MISTAKEN.format(sign=sign, more=more))
    with pytest.raises(kind, match=said):
        check_every_sample(ops["swiglu"])
