"""Every mistake that the Metal host promises to find is found, in its line; a kernel without one is left in peace."""

# ruff: noqa: E501, a line for each mistake

import numpy as np
import pytest
from m2ml_kernels import CompileError
from m2ml_kernels.metal_host import (
    InvalidMetal,
    KernelFault,
    KernelTimeout,
    SanitizerMissing,
    Schedule,
    Source,
    UnsupportedMetal,
    Variant,
    build,
    compile_kernel,
)
from m2ml_kernels.metal_host.signature import find_kernel
from metal_cases import compiled, run

X = np.arange(64, dtype=np.float32)
ADDRESS, THREAD = Variant(sanitizer="address"), Variant(sanitizer="thread")

# Faults end the launch: what the message says, and the body whose last line has the fault.
FAULTS = {
    "reads past a buffer": (r"f: kernel\.metal:4: out of bounds: an access 0 bytes past the end of buffer 'x', by thread \(63, 0, 0\)", "y[i] = x[i + 1];"),
    "writes past a buffer": (r"kernel\.metal:4: out of bounds: an access 0 bytes past the end of buffer 'y'", "y[2 * i + 2] = x[i];"),
    "leaves a threadgroup array": (r"kernel\.metal:5: out of bounds: an access 0 bytes past the end of threadgroup variable 't'", "threadgroup float t[64]; threadgroup float* p = t;\np[i + 1] = x[i]; y[i] = p[i];"),
    "indexes beyond an array": (r"kernel\.metal:5: undefined behaviour: an index is outside its array, by thread \(3, 0, 0\)", "float t[3] = {1, 2, 3};\ny[i] = t[i];"),
    "divides by zero": (r"kernel\.metal:4: undefined behaviour: an integer is divided by zero, .* thread \(5, 0, 0\) of threadgroup \(0, 0, 0\)", "y[i] = 10 / (int(i) - 5);"),
    "needs too large a stack": (r"out of bounds: an access below the thread's stack of 128 KiB", "volatile float big[40000]; big[i] = x[i]; y[i] = big[63 - i];"),
    "follows a wild pointer": (r"kernel\.metal:4: out of bounds: an access at an address that belongs to no buffer", "y[i] = *(device const float*)(ulong(i) + 8);"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FAULTS)
def test_a_fault_ends_the_launch(mistake):
    message, body = FAULTS[mistake]
    with pytest.raises(KernelFault, match=message):
        run(compiled(body), X)
    assert run(compiled("y[i] = x[i];"), X)[0].tolist() == X.tolist()  # the process is as it was


def test_a_fault_before_a_buffer():
    x = np.arange(1024, dtype=np.float32)  # a page: nothing lies between its start and the page before
    with pytest.raises(
        KernelFault, match=r"kernel\.metal:4: out of bounds: an access 4 bytes before buffer 'x', by thread"
    ):
        run(compiled("y[i] = x[int(i) - 1];"), x)
    _, result = run(compiled("y[int(i) - 1] = x[i];"), X)  # in the page itself: seen when the launch has ended
    assert [finding.what for finding in result.errors] == ["a write 1 bytes before buffer 'y'"]


# Findings do not: their kind, their line, and the body.
FINDINGS = {
    "returns before a barrier": ("divergent barrier", 5, "if (i >= 40) return;\nthreadgroup_barrier(mem_flags::mem_none);\ny[i] = x[i];"),
    "waits at different barriers": ("divergent barrier", 4, "if (i < 32) threadgroup_barrier(mem_flags::mem_none);\nelse\nthreadgroup_barrier(mem_flags::mem_none);\ny[i] = x[i];"),
    "a simdgroup barrier for some": ("divergent barrier", 4, "if (i % 2) simdgroup_barrier(mem_flags::mem_none);\ny[i] = x[i];"),
    "sums while others wait": ("simd operation against barrier", 4, "if (i % 2) y[i] = simd_sum(x[i]);\nthreadgroup_barrier(mem_flags::mem_none);"),
    "shuffles from lanes that are gone": ("undefined shuffle", 5, "if (i % 32 >= 16) return;\ny[i] = simd_shuffle_down(x[i], 1);"),
    "shuffles from no lane": ("undefined shuffle", 4, "y[i] = simd_shuffle(x[i], 32 + ushort(i));"),
    "shuffles by different deltas": ("undefined shuffle", 4, "y[i] = simd_shuffle_up(x[i], ushort(i % 2));"),
    "a matrix for half a simdgroup": ("partial matrix operation", 6, "simdgroup_float8x8 m(1.0);\nif (i % 32 < 16)\nsimdgroup_store(m, y, 8);"),
    "too much threadgroup memory": ("threadgroup memory", 4, "threadgroup float a[8000]; threadgroup int b[300];\na[i] = x[i]; b[i] = 1; y[i] = a[i] + b[i];"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FINDINGS)
def test_a_finding_names_its_line(mistake):
    kind, line, body = FINDINGS[mistake]
    _, result = run(compiled(body), X)
    first = result.errors[0]
    assert (first.kind, first.file, first.line) == (kind, "kernel.metal", line)
    assert f"kernel.metal:{line}: {kind}: " in str(first)


WATCHED = {
    "reads past a buffer": (ADDRESS, {4}, "y[i] = x[i + 1];"),
    "writes past a threadgroup array": (ADDRESS, {5}, "threadgroup float t[63]; threadgroup float* p = t;\np[i] = x[i];"),
    "writes past a private array": (ADDRESS, {5}, "float t[5]; thread float* p = t;\nfor (uint j = 0; j < 5 + i; ++j) p[j] = x[j];\ny[i] = p[0];"),
    "no barrier": (THREAD, {4, 5}, "threadgroup float t[64]; t[i] = x[i];\ny[i] = t[63 - i];"),
    "a barrier that orders nothing": (THREAD, {4, 6}, "threadgroup float t[64]; t[i] = x[i];\nthreadgroup_barrier(mem_flags::mem_none);\ny[i] = t[63 - i];"),
    "trusts that a simdgroup is in step": (THREAD, {4, 5}, "threadgroup float t[64]; t[i] = x[i];\ny[i] = t[i ^ 1] + simd_sum(0.0);"),
    "two threadgroups write one place": (THREAD, {4}, "if (i % 32 == 0) y[0] = x[i];"),
    "reads before the next round writes": (THREAD, {5, 7}, "threadgroup float t[64]; float s = 0; for (uint k = 0; k < 2; ++k) {\nt[i] = x[i] + k;\nthreadgroup_barrier(mem_flags::mem_threadgroup);\ns += t[63 - i]; }\ny[i] = s;"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WATCHED)
def test_a_sanitizer_names_the_line(mistake):
    variant, lines, body = WATCHED[mistake]
    _, result = run(compiled(body, variant=variant), X, threadgroup=(32 if "threadgroups" in mistake else 64, 1, 1))
    assert {finding.kind for finding in result.errors} == {"out of bounds" if variant == ADDRESS else "data race"}
    said = " ".join(map(str, result.errors))
    assert all(f"kernel.metal:{line}:" in said or f"in line {line} " in said for line in lines), said
    assert result.errors[0].thread


CORRECT = """threadgroup float t[64]; float s = 0;
for (uint k = 0; k < 3; ++k) {
  t[i] = x[i] + k;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  s += simd_sum(t[63 - i]) + t[(i + k) % 64];
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
simdgroup_float8x8 m;
threadgroup float tile[2][64];
for (uint j = i % 32; j < 64; j += 32) tile[i / 32][j] = x[j];
simdgroup_barrier(mem_flags::mem_threadgroup);
simdgroup_load(m, tile[i / 32], 8);
float shared = m.thread_elements()[0];
y[i] = s + simd_shuffle_xor(shared, 1);"""


@pytest.mark.parametrize("variant", [Variant(), ADDRESS, THREAD], ids=["plain", "address", "thread"])
def test_nothing_alarms_on_a_correct_kernel(variant):
    kernel = compiled(CORRECT, variant=variant)
    expected, _ = run(compiled(CORRECT), X)
    for schedule in (Schedule(), Schedule("reverse"), Schedule("random", seed=5)):
        y, result = run(kernel, X, schedule=schedule)
        assert result.findings == ()
        np.testing.assert_array_equal(y, expected)


def test_a_compiler_without_sanitizers_says_so(monkeypatch):
    def without(source, **options):
        raise CompileError("metal_runtime_thread does not compile: no such library")

    monkeypatch.setattr(build, "compile_program", without)
    with pytest.raises(
        SanitizerMissing, match=r"^the thread sanitizer is not part of .* \(install its runtime, or use g"
    ):
        compiled("y[i] = x[i];", variant=THREAD)


def test_what_was_never_written_shows():
    for fill, value in ((0xFF, np.nan), (0, 0.0)):
        y, _ = run(compiled("if (i != 7) y[i] = x[i];"), X, schedule=Schedule(fill=fill))
        np.testing.assert_array_equal(y[7], value)
        y, _ = run(
            compiled("threadgroup float t[64]; if (i == 0) t[0] = 1; y[i] = t[i];"), X, schedule=Schedule(fill=fill)
        )
        np.testing.assert_array_equal(y, np.where(X == 0, 1, value))


def test_a_kernel_that_does_not_end():
    kernel = compiled("while (x[0] == 0) ((volatile device float*)y)[i] = 1;")
    with pytest.raises(KernelTimeout, match=r"^f did not end within 0\.5 s: does it loop, or wait for another"):
        run(kernel, X, seconds=0.5)


RULES = {
    "y[i] = float(simd_sum(ulong(i)));": "simd and quad operations take numbers of at most 32 bits",
    "y[i] = simd_any(x[i]) ? simd_max(x[i] > 0) : 0;": "simd and quad operations take numbers of at most 32 bits",
    "threadgroup atomic<half> a; y[i] = 0;": "atomic takes int, uint, bool, float and ulong",
    "atomic_fetch_max_explicit((device atomic<float>*)y, 1.0, memory_order_relaxed);": "atomic max takes integers only",
    "bfloat b = x[i]; y[i] = b;": "bfloat",
    "y[i] = min(int(i), 3u);": "ambiguous",
    "y[i] = expf(x[i]);": "expf",
    "y[i] = std::exp(x[i]);": "exp",
    'printf("%f", x[i]);': "printf",
    "double d = x[i]; y[i] = d;": "M2_there_is_no_double_in_Metal",
    "y[i] = threadIdx.x;": "threadIdx",
    "y[i] = thread_index_in_simdgroup;": r"kernel\.metal:4: thread_index_in_simdgroup is not declared; give f the "
    r"parameter uint thread_index_in_simdgroup \[\[thread_index_in_simdgroup\]\]$",
    "simdgroup_matrix<float, 16, 16> m; y[i] = 0;": "simdgroup_matrix has 8 rows and 8 columns",
    "simdgroup_half8x8 m; simdgroup_load(m, x, 8);": "simdgroup_load needs the memory's type to be the matrix's",
    "float4 v(1, 2, 3); y[i] = v.x;": "vec",
    "half4 h = float4(1); y[i] = h.x;": "vec",
    "float4 v(1); v.xy.x = 2; y[i] = v.x;": "lvalue|not assignable",
    "y[i] = x[i]": "expected",
}


@pytest.mark.parametrize("body", RULES)
def test_what_metal_refuses_is_refused_in_its_line(body):
    with pytest.raises(CompileError, match=f"(?s)f is not valid Metal: .*{RULES[body]}") as caught:
        compiled(body)
    assert "kernel.metal:4" in caught.value.log or "kernel.metal:5" in caught.value.log


HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
UNREADABLE = {
    "kernel void f(texture2d<float> t [[texture(0)]]) {}": (UnsupportedMetal, r"line 3: texture2d is not supported: only compute"),
    "#include <metal_tensor>\nkernel void f(device float* y) {}": (UnsupportedMetal, r"line 3: the header <metal_tensor> is not supported"),
    "#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>": (UnsupportedMetal, r"MetalPerformancePrimitives\.h> is not supported"),
    "fragment float4 f() { return 0; }": (UnsupportedMetal, r"line 3: fragment is not supported"),
    "struct S { float xy; };\nkernel void f(device float* y) {}": (UnsupportedMetal, r"line 3: the member xy reads as a swizzle; give it another name"),
    '#include "mine.h"\nkernel void f(device float* y) {}': (InvalidMetal, r'line 3: the header "mine\.h" was not found'),
    "kernel void g(device float* y) {}": (InvalidMetal, r"kernel\.metal has no kernel f; its kernels: g"),
    "kernel void f(uint i) {}": (InvalidMetal, r"line 3: the parameter i of f has no attribute that says what it is"),
    "kernel void f(uint i [[thread_position]]) {}": (InvalidMetal, r"line 3: thread_position is no attribute of a compute kernel's parameter"),
    "kernel void f(device float* y { y[0] = 1; }": (InvalidMetal, r"line 3: the bracket \( is never closed"),
}  # fmt: skip


def test_textures_are_named_by_whoever_reads_the_parameters():
    """The command does so before anything is compiled."""
    text = "kernel void f(const texture2d<float> t [[texture(0)]]) {}"
    with pytest.raises(UnsupportedMetal, match=r"^line 1: texture2d is not supported: only compute kernels on buffers"):
        find_kernel(text, "f", "kernel.metal")


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_named(text):
    error, message = UNREADABLE[text]
    with pytest.raises(error, match=message):
        compile_kernel(Source(HEAD + text), "f")
