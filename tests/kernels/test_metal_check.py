"""`check` tries a kernel in every way and tells what it found; `m2ml kernel check` prints it."""

import re
from pathlib import Path

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output
from m2ml_kernels.metal_host.check import VARIANTS, Case, check
from m2ml_mlx.kernels import source
from metal_cases import source_of
from typer.testing import CliRunner

from m2ml.cli import app
from m2ml.equivalence.kernels import MetalCheck, Subject, metal_kernels
from m2ml.op import ops

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


@pytest.mark.slow
def test_an_op_is_checked_by_name_with_all_its_kernels():
    result = CliRunner().invoke(app, ["kernel", "check", "swiglu"])
    assert result.exit_code == 0, result.output
    assert (
        "cpp/swiglu_backward, a kernel of swiglu_backward for cpu\n  against the definition, float32" in result.output
    )
    assert "metal/swiglu, a kernel of swiglu for mlx\n  address spaces                       ok" in result.output
    assert re.search(r"costs at 64 rows of 4096 +ok +1\.000 of the bytes that must be", result.output)
    assert "not run it is for gpu, and mlx has a cpu here\nnot run" in result.output  # CUDA's


WITHOUT = min(set(ops) - {op.name for op, _ in metal_kernels()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "softplus"], "there is no op softplus; there are adamw_update, add_rms_norm"),
        (["check", "swiglu", "--grid", "64"], "--grid is for a file; the launches of swiglu are those of its samples"),
        (["check", "no.metal", "--kernel", "f", "--grid", "1", "--threadgroup", "1"], "there is no file no.metal"),
        (["check", "no.metal", "--kernel", "f"], "to check a file, --grid and --threadgroup must be given"),
        (["costs", "softplus"], "there is no op softplus"),
        (["costs", WITHOUT], f"no Metal kernel is registered for {WITHOUT}"),
        (["new", "Soft-Sign"], "an op's name is a Python identifier in lower case, such as soft_sign; got Soft-Sign"),
        (["new", "swiglu"], "there is an op swiglu already; choose another name"),
        (["new", "soft_sign", "--folder", "."], "exists already; name another folder with --folder"),
    ],
)
def test_a_wrong_name_is_told(arguments, message):
    result = CliRunner().invoke(app, ["kernel", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_new_kernel_is_the_example(tmp_path):
    """The example among the examples is what the command writes, so its tests are the template's."""
    result = CliRunner().invoke(app, ["kernel", "new", "soft_sign", "--folder", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    example = Path(__file__).parents[2] / "examples" / "kernel_plugin"
    written = {path.relative_to(tmp_path / "new"): path.read_text() for path in (tmp_path / "new").rglob("*.*")}
    assert {str(path) for path in written} == {
        "README.md",
        "pyproject.toml",
        *(f"m2ml_soft_sign/{name}" for name in ("__init__.py", "soft_sign.cc", "soft_sign.metal")),
    }
    assert written == {path: (example / path).read_text() for path in written}


def test_a_wrong_address_space_of_a_registered_kernel_is_told(monkeypatch):
    """The report of an op points at the line of the text that was launched."""
    text = source.text
    wrong = "float* p = nullptr;\nthreadgroup float t[1]; if (count < 0) t[0] = p[0];\n"
    monkeypatch.setattr(source, "text", lambda path: wrong * (path == "metal/swiglu.metal") + text(path))
    (chosen,) = ((op, kernel) for op, kernel in metal_kernels() if kernel.name == "metal/swiglu")
    check = MetalCheck(Subject(*chosen, every=20))
    forward = check.run("threads in order")
    report = check.report_of([check.lint(), forward])
    assert not report.passed
    assert "address space: float* p needs an address space: device, constant, threadgroup or thread" in report.text
    assert "| float* p = nullptr;" in report.text
