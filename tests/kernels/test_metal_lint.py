"""Mistakes with address spaces are told in their line; kernels without them are left in peace."""

# ruff: noqa: E501, a line for each mistake

import builtins

import pytest
from m2ml_kernels.metal_host import Source
from m2ml_kernels.metal_host.lint import LinterMissing, lint
from metal_cases import source_of
from mlx_shipped import header

PARAMETERS = ["device const float* x", "device float* y", "constant uint& n"]
HELPER = "inline float helper(thread const float* p) { return p[0]; }\n"

# Each mistake with all that is told of it, in its order: line by line, and in one line the plainest first.
MISTAKES = {
    "float* p = x; y[i] = *p;": [
        (4, "float* p needs an address space: device, constant, threadgroup or thread"),
        (4, "cannot initialize a variable of type 'float *' with an lvalue of type 'device float const *'"),
    ],
    "y[i] = x[i];\nfloat* p = nullptr; x[i] = 1; float* q = nullptr;": [
        (5, "float* p needs an address space: device, constant, threadgroup or thread"),
        (5, "float* q needs an address space: device, constant, threadgroup or thread"),
        (5, "read-only variable is not assignable"),
    ],
    "thread float* p = y; p[0] = x[i];": [
        (4, "cannot initialize a variable of type 'float *' with an lvalue of type 'device float *'"),
    ],
    "threadgroup float t[32];\ndevice float* p = t; p[0] = 1;": [
        (5, "cannot initialize a variable of type 'device float *' with an lvalue of type 'threadgroup float[32]'"),
    ],
    "thread const float* p; p = x; y[i] = p[0];": [
        (4, "assigning 'device float const *' to 'const float *' changes address space of pointer"),
    ],
    "n = 3; y[i] = n;": [
        (4, "cannot assign to variable 'n' with const-qualified type 'constant uint &' (aka 'constant unsigned int &')"),
    ],
    "x[i] = 1;": [(4, "read-only variable is not assignable")],
    "float4 v = float4(1);\nthread float& e = v[1]; e = 2; y[i] = v.x;": [
        (5, "non-const reference cannot bind to vector element"),
    ],
    "simdgroup_float8x8 m; thread float& p = m.thread_elements()[0]; p = x[i];": [
        (4, "non-const reference cannot bind to vector element"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("body", MISTAKES)
def test_a_mistake_is_told(body):
    found = lint(source_of(PARAMETERS, body))
    assert [(finding.line, finding.what) for finding in found] == MISTAKES[body]
    assert {(finding.kind, finding.file) for finding in found} == {("address space", "kernel.metal")}


def test_a_pointer_passed_to_another_space_is_told():
    (finding,) = lint(source_of(PARAMETERS, "y[i] = helper(x);", head=HELPER))
    assert (finding.line, finding.what) == (
        5,
        "no matching function for call to 'helper': a pointer to another address space is passed",
    )


TEMPLATE = """template <typename T> struct Pair { const device T* p; T x; };
template <typename T> [[kernel]] void f(const constant T* seen, device T* y, uint i [[thread_position_in_grid]]) {
  Pair<T> pair;
  pair = {seen, T(1)};
  y[i] = pair.p[0];
}
"""


def test_a_template_is_looked_at_as_it_is_instantiated():
    made = 'template [[host_name("g")]] [[kernel]] decltype(f<float>) f<float>;\n'
    assert lint(Source(TEMPLATE)) == []
    (finding,) = lint(Source(TEMPLATE + made))
    assert (finding.line, finding.what) == (4, "no viable overloaded '=': a value of the list does not fit its member")
    assert lint(Source(TEMPLATE.replace("constant", "device") + made)) == []


CORRECT = [
    "float v[1] = {x[i]}; y[i] = helper(v) * n;",
    "threadgroup float t[32]; threadgroup float* p = t; p[i] = x[i]; device float* q = y + i; *q = p[i];",
    "float4 v = float4(x[i]); v.xy = v.zw * 2; float e = v[1]; device float4* out = (device float4*)y; out[i] = v;",
    "for (uint k = i; k < n; k += 32) y[k] = exp(x[k]) * (x[k] - 1) & n; auto p = x; y[0] = p[0];",
]


@pytest.mark.parametrize("body", CORRECT)
def test_what_is_right_passes(body):
    assert lint(source_of(PARAMETERS, body, head=HELPER)) == []


@pytest.mark.parametrize(
    "path",
    [
        "softmax.h",
        "logsumexp.h",
        "sdpa_vector.h",
        "quantized.h",
        "steel/gemm/kernels/steel_gemm_fused.h",
        "steel/attn/kernels/steel_attention.h",
    ],
)
def test_the_kernels_of_mlx_pass(path):
    assert lint(header(path)) == []


def test_without_libclang_it_says_so(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **options):
        if name.startswith("clang"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LinterMissing, match=r"needs the package libclang; install it \(pip install libclang\)"):
        lint(source_of(PARAMETERS, "y[i] = x[i];"))
