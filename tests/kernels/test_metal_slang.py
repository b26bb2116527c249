"""Metal text that another tool emits runs like any other: Slang's compiler, which is on the package index."""

import subprocess
import sys

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output, Source, compile_kernel, launch
from m2ml_kernels.metal_host.check import VARIANTS, Case, check

pytestmark = [pytest.mark.slow, pytest.mark.network]

RMS_NORM = """StructuredBuffer<float> x, weight;
RWStructuredBuffer<float> y;
uniform uint n;
groupshared float partial[4];

[shader("compute")]
[numthreads(128, 1, 1)]
void f(uint3 group : SV_GroupID, uint3 thread : SV_GroupThreadID)
{
    float sum = 0.0;
    for (uint i = thread.x; i < n; i += 128) sum += x[group.x * n + i] * x[group.x * n + i];
    sum = WaveActiveSum(sum);
    if (WaveIsFirstLane()) partial[thread.x / 32] = sum;
    GroupMemoryBarrierWithGroupSync();
    float scale = rsqrt((partial[0] + partial[1] + partial[2] + partial[3]) / n);
    for (uint i = thread.x; i < n; i += 128) y[group.x * n + i] = x[group.x * n + i] * scale * weight[i];
}
"""
PRODUCT = """using namespace linalg;
StructuredBuffer<float> a, b;
RWStructuredBuffer<float> c;

typealias Matrix<let use : CoopMatMatrixUse> = CoopMat<float, MemoryScope.Subgroup, 8, 8, use>;

[shader("compute")]
[numthreads(32, 1, 1)]
void f()
{
    let left = Matrix<CoopMatMatrixUse.MatrixA>.Load<CoopMatMatrixLayout.RowMajor>(a, 0, 8);
    let right = Matrix<CoopMatMatrixUse.MatrixB>.Load<CoopMatMatrixLayout.RowMajor>(b, 0, 8);
    let sum = coopMatMulAdd<float, false>(left, right, Matrix<CoopMatMatrixUse.MatrixAccumulator>(0.0));
    sum.Store<CoopMatMatrixLayout.RowMajor>(c, 0, 8);
}
"""
HISTOGRAM = """StructuredBuffer<uint> x;
RWStructuredBuffer<Atomic<uint>> count;
groupshared Atomic<uint> own[16];

[shader("compute")]
[numthreads(64, 1, 1)]
void f(uint3 at : SV_DispatchThreadID, uint3 thread : SV_GroupThreadID)
{
    if (thread.x < 16) own[thread.x].store(0);
    GroupMemoryBarrierWithGroupSync();
    own[x[at.x] & 15].add(1);
    GroupMemoryBarrierWithGroupSync();
    if (thread.x < 16) count[thread.x].add(own[thread.x].load());
}
"""


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """What Slang makes of a text, as a source of Metal."""
    folder = tmp_path_factory.mktemp("slang")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "slangtorch==1.3.22"]
    subprocess.run(install, check=True)
    compiler = folder / "slangtorch" / "bin" / "slangc"
    compiler.chmod(0o755)

    def emit(text):
        (folder / "f.slang").write_text(text)
        command = [compiler, "f.slang", "-target", "metal", "-entry", "f", "-stage", "compute", "-o", "f.metal"]
        subprocess.run(command, check=True, cwd=folder, timeout=60)
        return Source((folder / "f.metal").read_text(), "f.metal")

    return emit


def rms_norm(source):
    """On rows of 300: each square, sum and factor is rounded, and the fast root is off by two units."""
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 300), (300,)))
    wide = x.astype(np.float64)
    y = wide / np.sqrt((wide * wide).mean(1, keepdims=True)) * weight
    names = compile_kernel(source, "f").signature.buffer_names()
    given = {"x": x, "weight": weight, "y": Output(x.shape, np.dtype(np.float32))}
    buffers = {i: given.get(name.rpartition("_")[0], np.array([300], np.uint32)) for i, name in names.items()}
    out = next(i for i, buffer in buffers.items() if isinstance(buffer, Output))
    bound = np.abs(y) * 2.0**-24 * (300 / 128 + 7 + 2 + 2 * 4)
    return Case(source, "f", buffers, (5 * 128, 1, 1), (128, 1, 1), expected={out: y}, bound={out: bound})


def test_a_norm_passes_every_check(emitted):
    report = check(rms_norm(emitted(RMS_NORM)))
    assert report.passed, report.text
    assert all(step.ran for step in report.steps)
    assert set(VARIANTS) <= {step.name for step in report.steps}


def test_its_missing_barrier_is_told_in_the_line_of_its_own_source(emitted):
    barrier = "    GroupMemoryBarrierWithGroupSync();\n"
    case = rms_norm(emitted(RMS_NORM.replace(barrier, "    \n")))
    report = check(Case(case.source, "f", case.buffers, case.grid, case.threadgroup))
    assert not report.passed
    assert "f.slang:13: data race: a write" in report.text


def test_a_product_by_matrices_of_a_simdgroup(emitted):
    a, b = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
    buffers = {0: a, 1: b, 2: Output((8, 8), np.dtype(np.float32))}
    kernel = compile_kernel(emitted(PRODUCT), "f")
    result = launch(kernel, buffers, grid=(32, 1, 1), threadgroup=(32, 1, 1))
    exact = a.astype(np.float64) @ b
    assert np.all(np.abs(result.buffers[2] - exact) <= 8 * 2.0**-24 * (np.abs(a) @ np.abs(b)))
    assert result.findings == ()


def test_a_histogram_by_atomics(emitted):
    x = np.random.default_rng(2).integers(0, 16, 256).astype(np.uint32)
    kernel = compile_kernel(emitted(HISTOGRAM), "f")
    buffers = {0: x, 1: np.zeros(16, np.uint32)}
    result = launch(kernel, buffers, grid=(256, 1, 1), threadgroup=(64, 1, 1), read_back=(1,))
    np.testing.assert_array_equal(result.buffers[1], np.bincount(x, minlength=16))
    assert result.findings == ()
