"""`check` tries a kernel in every way and tells what it found; `m2ml kernel check` prints it."""

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output
from m2ml_kernels.metal_host.check import VARIANTS, Case, check
from metal_cases import source_of
from typer.testing import CliRunner

from m2ml.cli import app

ROWS = """threadgroup float part[2];
float v = exp(x[i]);
float s = simd_sum(v);
if (i % 32 == 0) part[i % 64 / 32] = s;
threadgroup_barrier(mem_flags::mem_threadgroup);
y[i] = v / (part[0] + part[1]);"""
X = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
E = np.exp(X.astype(np.float64))
Y = E / E.sum(1, keepdims=True)
# exp is off by up to 3 + floor(2 |x|) units, the sum of 64 by seven roundings, the quotient by one and what they share
BOUND = Y * 2.0**-23 * (2 * (3 + 2 * np.abs(X).max()) + 9)


def case(body, **options):
    source = source_of(["device const float* x", "device float* y"], body)
    buffers = {0: X, 1: Output(X.shape, np.dtype(np.float32))}
    return Case(source, "f", buffers, (128, 1, 1), (64, 1, 1), expected={1: Y}, bound={1: BOUND}, **options)


def test_a_correct_kernel_passes_every_step():
    report = check(case(ROWS))
    assert report.passed, report.text
    assert all(step.ran for step in report.steps)
    assert {"address spaces", "threads in random order", "address sanitizer", "thread sanitizer", *VARIANTS} <= {
        step.name for step in report.steps
    }
    assert report.text.endswith("passed")


def test_a_missing_barrier_fails_with_its_line():
    report = check(case(ROWS.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", "")))
    assert not report.passed
    # in order, thread 0 already reads what the second simdgroup has not written
    assert "buffer 1 at (0, 0) is nan, not" in report.text


def test_a_wrong_answer_fails_at_once():
    report = check(case("y[i] = x[i];"))
    assert [step.name for step in report.steps if not step.passed] == ["threads in order"]
    assert "wrong result: buffer 1 at (" in report.text


def test_source_that_does_not_compile_is_told_once():
    report = check(case("y[i] = expf(x[i]);"))
    assert [step.name for step in report.steps if not step.passed] == ["threads in order"]
    assert "does not compile: f is not valid Metal: kernel.metal:4:" in report.text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scale.metal"
    path.write_text(
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void scale(device const float* x, device float* y, constant uint& n, "
        "uint i [[thread_position_in_grid]]) {\n"
        "  threadgroup float t[32];\n  t[i % 32] = x[i] * n;\n  y[i] = t[(i + 1) % 32];\n}\n"
    )
    return path


ARGUMENTS = "--kernel scale --grid 32 --threadgroup 32 --buffer x=float32[32] --buffer y=out:float32[32]".split()


def test_the_command_prints_the_report_with_the_source(file):
    result = CliRunner().invoke(app, ["kernel", "check", str(file), *ARGUMENTS, "--buffer", "n=uint32:3"])
    assert result.exit_code == 1, result.output
    assert f"{file}:5: data race: a write, and a read in line 6" in result.output
    assert "5 |   t[i % 32] = x[i] * n;" in result.output


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ("n", "a buffer is written like x=float32"),
        ("m=uint32:3", "scale has no buffer m; its buffers: x, y, n"),
        ("n=number:3", "number is not a dtype of NumPy"),
        ("x=float32[32]", "buffer 2 ('n') is not given"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_arguments(file, buffer, message):
    result = CliRunner().invoke(app, ["kernel", "check", str(file), *ARGUMENTS, "--buffer", buffer])
    assert result.exit_code != 0
    assert message in result.output
