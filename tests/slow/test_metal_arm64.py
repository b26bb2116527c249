"""The Metal host on arm64: its runtime and headers are compiled by zig for arm64 Linux, and a kernel runs under qemu.

Linked as one program, since qemu's user has no arm64 C library to load objects with. qemu runs the fiber switch and the
arithmetic of half; it says nothing of a Mac's own loader, signals or speed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output, Schedule, Source, compile_kernel, launch
from m2ml_kernels.metal_host import execution as running
from m2ml_kernels.metal_host.build import HERE, SHIM, _translation_unit
from m2ml_kernels.metal_host.rewrite import rewrite

pytestmark = [pytest.mark.slow, pytest.mark.network]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

KERNEL = """#include <metal_stdlib>
using namespace metal;
kernel void f(device const float* x, device float* y, device half* h, uint i [[thread_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint place [[thread_position_in_threadgroup]]) {
  threadgroup float t[64];
  t[place] = x[i] * 0.3;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 m(1.0), p;
  simdgroup_load(p, t + place / 32 * 0, 8);
  simdgroup_multiply(p, m, p);
  float4 v = float4(t[63 - place], simd_sum(x[i]), simd_shuffle_xor(x[i], 5), p.thread_elements()[1]);
  y[i] = v.x + v.wzy[lane % 3] / 7.0;
  h[i] = half(x[i]) * half(3) + half(1) / half(place + 1);
  if (lane >= 20) return;
  y[i] += float(simd_prefix_exclusive_sum(int(lane)));
}
"""
# The kernel is part of the program: what would be loaded is there.
MAIN = """#include <dlfcn.h>
#include <cstring>
namespace m2 { struct host; }
extern "C" { extern const m2::host* m2_host; void m2_entry(); }
#define dlopen(path, mode) reinterpret_cast<void*>(1)
#define dlsym(library, name) (std::strcmp(name, "m2_host") ? reinterpret_cast<void*>(&m2_entry) : (void*)&m2_host)
#include "launch.cc"
"""
FLAGS = ["-std=c++17", "-O1", "-w", "-Wno-narrowing", "-fno-strict-aliasing", "-fwrapv", "-fno-math-errno"]
FLAGS += ["-ffp-contract=off", "-fno-sanitize=undefined"]


@pytest.fixture(scope="module")
def zig(tmp_path_factory):
    """A command that compiles, and its environment; fetched where it is not installed."""
    environment = dict(os.environ)
    if not importlib.util.find_spec("ziglang"):
        folder = tmp_path_factory.mktemp("zig")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "ziglang"], check=True
        )
        environment["PYTHONPATH"] = str(folder)
    return [sys.executable, "-m", "ziglang", "c++"], environment


@pytest.fixture
def kernel():
    return compile_kernel(Source(KERNEL), "f")


def parts(folder, kernel):
    """The kernel and the runtime as two files."""
    body = rewrite(KERNEL)
    (folder / "kernel.cc").write_text(_translation_unit("kernel.metal", "", body, kernel.signature, "", {}))
    (folder / "main.cc").write_text(MAIN)
    return [folder / "main.cc", folder / "kernel.cc"]


def compiled(zig, target, folder, kernel, *more):
    command, environment = zig
    include = [f"-I{SHIM}", f"-I{HERE / 'runtime'}", "-DM2_PROGRAM", "-DM2_LIBRARY_CHECKS"]
    made = folder / "program"
    whole = [*command, "-target", *target, *FLAGS, *include, *more, *parts(folder, kernel), "-o", made]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def test_it_compiles_for_a_mac(zig, tmp_path, kernel):
    target = "aarch64-macos", "-mcpu=apple_m1"
    program = compiled(zig, target, tmp_path, kernel).read_bytes()
    assert program[:8] == bytes.fromhex("cffaedfe0c000001")  # Mach-O of 64 bits, arm64


@pytest.mark.skipif(QEMU is None, reason="qemu-aarch64, which runs arm64 programs, is not installed (qemu-user)")
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_kernel_gives_the_same_bits_under_qemu(zig, tmp_path, kernel, order):
    x = np.random.default_rng(0).normal(size=128).astype(np.float32)
    buffers = {0: x, 1: Output((128,), np.dtype(np.float32)), 2: Output((128,), np.dtype(np.float16))}
    sizes = {"grid": (128, 1, 1), "threadgroup": (64, 1, 1), "schedule": Schedule(order, seed=2)}
    here = launch(kernel, buffers, **sizes)
    job, wanted = running._encode(kernel, buffers, (128, 1, 1), (64, 1, 1), {}, (), sizes["schedule"])
    (tmp_path / "job").write_bytes(job)
    program = compiled(zig, ("aarch64-linux-musl", "-mcpu=cortex_a76"), tmp_path, kernel, "-static")
    command = [QEMU, program, "linked", tmp_path / "job", tmp_path / "result"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    there = running._decode(kernel, (tmp_path / "result").read_bytes(), wanted, [])
    for index in wanted:
        np.testing.assert_array_equal(there.buffers[index], here.buffers[index])
    assert [(f.kind, f.line) for f in there.findings] == [(f.kind, f.line) for f in here.findings]
