"""The C++ kernels on arm64: each file compiles for a Mac, and each kernel's NEON code runs on its op's samples.

What zig compiles for arm64 Linux runs under qemu (`outside_xla`). qemu runs the instructions; it says nothing of speed.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys

import m2ml_cpu.kernels
import numpy as np
import pytest
from m2ml_cpu.ffi import FLAGS, source_of
from m2ml_kernels import compile_shared
from outside_xla import INCLUDE, ON, SOURCES, Outside, check_file, in_place_of

from m2ml.equivalence.ops import check_values
from m2ml.errors import Disagreement
from m2ml.op import ops

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


@pytest.fixture
def arm(monkeypatch):
    """A function that gives a file of kernels as a program for arm64 Linux, under qemu."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64, which runs arm64 programs, is not installed (apt-get install qemu-user)")
    flags = [*compiler_for(monkeypatch, "aarch64-linux-musl", "cortex_a76"), "-static"]

    def put(source, body=""):
        outside = Outside(source, flags, ["qemu-aarch64"], body)
        assert struct.unpack("<H", outside.path.read_bytes()[18:20]) == (183,)  # ELF of arm64
        return in_place_of(source, outside)

    return put


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_neon_code_agrees_with_the_definition(arm, source):
    with arm(source) as calls:
        check_file(source, calls)


def check_every_sample(op):
    for sample in op.samples():
        check_values(op, sample, np.float32, ON)


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
    mistaken = "#include <cmath>\n" + MISTAKEN.format(sign=sign, more=more)
    with arm(source_of("swiglu"), mistaken), pytest.raises(kind, match=said):
        check_every_sample(ops["swiglu"])
