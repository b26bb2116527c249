"""Metal kernels on the CPU compute what Metal says they compute."""

import ml_dtypes
import numpy as np
import pytest
from m2ml_kernels.metal_host import InvalidLaunch, Output, Schedule, Source, compile_kernel, launch
from m2ml_kernels.metal_host.signature import ATTRIBUTES
from metal_cases import HEAD, compiled, run, source_of

LANES = np.arange(32)
X = np.random.default_rng(0).normal(size=64).astype(np.float32)
SCHEDULES = [Schedule(), Schedule("reverse"), Schedule("random", seed=3), Schedule("random", seed=4, workers=2)]


def test_a_kernel_maps_every_element_in_any_order():
    kernel = compiled("y[i] = exp(x[i]) + 1.0;")
    for schedule in SCHEDULES:
        y, result = run(kernel, X, threadgroup=(24, 1, 1), schedule=schedule)
        np.testing.assert_allclose(y, np.exp(X) + 1, rtol=2e-7)
        assert result.findings == ()


SIMD = {
    "simd_sum(v)": lambda v: np.full(32, v.sum()),
    "simd_product(1 + v % 2)": lambda v: np.full(32, 2 ** (v % 2).sum()),
    "simd_max(v)": lambda v: np.full(32, v.max()),
    "simd_min(v)": lambda v: np.full(32, v.min()),
    "simd_xor(v)": lambda v: np.full(32, np.bitwise_xor.reduce(v)),
    "simd_prefix_inclusive_sum(v)": np.cumsum,
    "simd_prefix_exclusive_sum(v)": lambda v: np.cumsum(v) - v,
    "simd_prefix_exclusive_product(1 + v % 2)": lambda v: np.cumprod(1 + v % 2) // (1 + v % 2),
    "simd_broadcast(v, 7)": lambda v: np.full(32, v[7]),
    "simd_broadcast_first(v)": lambda v: np.full(32, v[0]),
    "simd_shuffle(v, ushort(31 - lane))": lambda v: v[::-1],
    "simd_shuffle_xor(v, 5)": lambda v: v[LANES ^ 5],
    "simd_shuffle_down(v, 3)": lambda v: np.where(LANES < 29, np.roll(v, -3), v),
    "simd_shuffle_up(v, 3)": lambda v: np.where(LANES >= 3, np.roll(v, 3), v),
    "simd_shuffle_rotate_down(v, 3)": lambda v: np.roll(v, -3),
    "simd_shuffle_rotate_up(v, 3)": lambda v: np.roll(v, 3),
    "simd_shuffle_and_fill_down(v, 100 + v, 3)": lambda v: np.where(LANES < 29, np.roll(v, -3), 100 + np.roll(v, -3)),
    "simd_shuffle_and_fill_up(v, 100 + v, 3)": lambda v: np.where(LANES >= 3, np.roll(v, 3), 100 + np.roll(v, 3)),
    "simd_shuffle_and_fill_up(v, 100 + v, 1, 8)": lambda v: np.where(
        LANES % 8 > 0, np.roll(v, 1), 100 + np.roll(v.reshape(4, 8), 1, 1).ravel()
    ),
    "int(ulong(simd_ballot(lane % 3 == 0)) % 1000003)": lambda v: np.full(
        32, sum(1 << lane for lane in range(0, 32, 3)) % 1000003
    ),
    "int(simd_all(v < 200)) + 2 * int(simd_any(v == 11))": lambda v: np.full(32, 3 if 11 in v else 1),
    "int(simd_is_first())": lambda v: LANES == 0,
    "quad_sum(v)": lambda v: v.reshape(8, 4).sum(1).repeat(4),
    "quad_shuffle_xor(v, 1)": lambda v: v[LANES ^ 1],
    "quad_broadcast(v, 2)": lambda v: v.reshape(8, 4)[:, 2].repeat(4),
    "quad_prefix_inclusive_sum(v)": lambda v: v.reshape(8, 4).cumsum(1).ravel(),
}


def test_operations_of_simdgroups_and_quads():
    lines = "\n".join(f"out[{row} * 32 + lane] = {call};" for row, call in enumerate(SIMD))
    source = HEAD + (
        "kernel void f(device const int* x, device int* out, uint lane [[thread_index_in_simdgroup]]) {\n"
        f"int v = x[lane];\n{lines}\n}}\n"
    )
    v = np.random.default_rng(1).integers(0, 20, 32)
    kernel = compile_kernel(Source(source), "f")
    for schedule in SCHEDULES:
        result = launch(
            kernel,
            {0: v.astype(np.int32), 1: Output((len(SIMD), 32), np.dtype(np.int32))},
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            schedule=schedule,
        )
        for (call, model), got in zip(SIMD.items(), result.buffers[1], strict=True):
            np.testing.assert_array_equal(got, model(v), err_msg=call)
        assert result.findings == ()


def test_a_reduction_takes_the_lanes_that_are_active():
    kernel = compiled("if (i % 32 >= 20) return;\nif (i % 2)\n y[i] = simd_sum(1.0);\nelse\n y[i] = simd_sum(x[i]);")
    x = np.arange(40, dtype=np.float32)
    y, result = run(kernel, x, threadgroup=(40, 1, 1))
    np.testing.assert_array_equal(y[1:20:2], 10)
    np.testing.assert_array_equal(y[0:20:2], x[:20:2].sum())
    np.testing.assert_array_equal(y[33:40:2], 4)
    assert {(finding.kind, finding.is_note) for finding in result.findings} == {("partial simd operation", True)}


def test_vectors_swizzles_and_conversions():
    body = """
    float4 v = float4(x[0], float2(x[1], x[2]), 1);
    float3 w = v.zyx;
    v.xw = w.yz;                 // not contiguous, and read from elsewhere
    v.yz *= 2;
    uint2 u = uint2(int2(-1, 3));
    float2 p = float2(u.y) + packed_float2(v.xy);
    bool3 less = w < float3(0);
    half4 h = half4(v) * 2;
    float4 results[3] = {v, float4(p, float(any(less)), dot(w, w)), float4(h)};
    ((device float4*)y)[i] = results[i];"""
    x = np.array([-1.5, 2, 3], np.float32)
    y, _ = run(compiled(body), x, size=12, grid=(3, 1, 1))
    v = np.array([2, 4, 6, -1.5], np.float32)
    w = np.array([3, 2, -1.5])
    np.testing.assert_array_equal(y.reshape(3, 4), [v, [5, 7, 1, w @ w], v * 2])


@pytest.mark.parametrize(("metal", "dtype"), [("half", np.float16), ("bfloat", ml_dtypes.bfloat16)])
def test_short_floats_round_after_every_operation(metal, dtype):
    parameters = [f"device const {metal}* x", f"device {metal}* y"]
    source = source_of(parameters, f"{metal} a = x[i]; y[i] = a * a + a / 3 - {metal}(0.1);")
    x = X.astype(dtype)
    left = launch(
        compile_kernel(source, "f"),
        {0: x, 1: Output(x.shape, np.dtype(dtype))},
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
    )
    np.testing.assert_array_equal(left.buffers[1], x * x + x / dtype(3) - dtype(0.1))


@pytest.mark.parametrize("order", [Schedule(), Schedule("random", shuffle_reductions=True)])
def test_matrices_of_a_simdgroup(order):
    source = (
        HEAD
        + """kernel void f(device const float* a, device const half* b, device float* d, device float* t,
        uint lane [[thread_index_in_simdgroup]]) {
      simdgroup_float8x8 A, C(2.0), D;
      simdgroup_half8x8 B;
      simdgroup_load(A, a, 8, ulong2(0), true);
      simdgroup_load(B, b, 16, ulong2(8, 0));
      simdgroup_multiply_accumulate(D, A, B, C);
      simdgroup_store(D, d, 8);
      t[2 * lane] = A.thread_elements()[0];
      t[2 * lane + 1] = A.thread_elements()[1];
    }
    """
    )
    draw = np.random.default_rng(2)
    a, b = draw.normal(size=(8, 8)).astype(np.float32), draw.normal(size=(8, 16)).astype(np.float16)
    floats = np.dtype(np.float32)
    result = launch(
        compile_kernel(Source(source), "f"),
        {0: a, 1: b, 2: Output((8, 8), floats), 3: Output((64,), floats)},
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        schedule=order,
    )
    np.testing.assert_allclose(result.buffers[2], a.T.astype(float) @ b[:, 8:] + 2 * np.eye(8), rtol=1e-5, atol=1e-6)
    assert sorted(result.buffers[3]) == sorted(a.ravel())  # every element lies in one lane
    assert result.findings == ()


def test_atomics_from_several_threads_of_the_machine():
    parameters = ["device const float* x", "device atomic<float>* sum", "device atomic_int* most"]
    body = """
      atomic_fetch_add_explicit(sum, x[i], memory_order_relaxed);
      atomic_fetch_max_explicit(most, int(i), memory_order_relaxed);
      atomic_fetch_xor_explicit(bits, i, memory_order_relaxed);"""
    source = source_of([*parameters, "device atomic_uint* bits"], body)
    x = np.arange(1000, dtype=np.float32)
    zeros = {1: np.zeros(1, np.float32), 2: np.zeros(1, np.int32), 3: np.zeros(1, np.uint32)}
    result = launch(
        compile_kernel(source, "f"),
        {0: x, **zeros},
        read_back=[1, 2, 3],
        grid=(1000, 1, 1),
        threadgroup=(64, 1, 1),
        schedule=Schedule(workers=2),
    )
    assert [float(result.buffers[i][0]) for i in (1, 2, 3)] == [x.sum(), 999, np.bitwise_xor.reduce(np.arange(1000))]


def test_attributes_on_a_grid_whose_last_threadgroups_are_smaller():
    body = ["uint at = i.y * 10 + i.x;"]
    for row, (name, kind) in enumerate(ATTRIBUTES.items()):
        parts = [f"{name}[{axis}]" for axis in range(3)] if kind == "uint3" else [name]
        body += [f"out[{(row * 3 + axis) * 70} + at] = {part};" for axis, part in enumerate(parts)]
    declared = ", ".join(f"{kind} {name} [[{name}]]" for name, kind in ATTRIBUTES.items())
    lines = "\n".join(body)
    source = f"{HEAD}kernel void f(device uint* out, {declared}, uint2 i [[thread_position_in_grid]]) {{\n{lines}\n}}\n"
    result = launch(
        compile_kernel(Source(source), "f"),
        {0: Output((len(ATTRIBUTES), 3, 7, 10), np.dtype(np.uint32))},
        grid=(10, 7, 1),
        threadgroup=(8, 5, 1),
    )
    got = dict(zip(ATTRIBUTES, result.buffers[0], strict=True))
    y, x = np.indices((7, 10))
    width, height = np.where(x < 8, 8, 2), np.where(y < 5, 5, 2)
    index = (y % 5) * width + x % 8
    groups = (width * height + 31) // 32
    expected = {
        "thread_position_in_grid": (x, y, 0),
        "thread_position_in_threadgroup": (x % 8, y % 5, 0),
        "threadgroup_position_in_grid": (x // 8, y // 5, 0),
        "threads_per_threadgroup": (width, height, 1),
        "dispatch_threads_per_threadgroup": (8, 5, 1),
        "threads_per_grid": (10, 7, 1),
        "grid_size": (10, 7, 1),
        "grid_origin": (0, 0, 0),
        "threadgroups_per_grid": (2, 2, 1),
        "thread_index_in_threadgroup": (index,),
        "thread_index_in_simdgroup": (index % 32,),
        "thread_index_in_quadgroup": (index % 4,),
        "simdgroup_index_in_threadgroup": (index // 32,),
        "quadgroup_index_in_threadgroup": (index // 4,),
        "simdgroups_per_threadgroup": (groups,),
        "quadgroups_per_threadgroup": ((width * height + 3) // 4,),
        "dispatch_simdgroups_per_threadgroup": (2,),
        "dispatch_quadgroups_per_threadgroup": (10,),
        "thread_execution_width": (32,),
        "threads_per_simdgroup": (32,),
    }
    assert expected.keys() == got.keys()
    for name, values in expected.items():
        for axis, value in enumerate(values):
            np.testing.assert_array_equal(got[name][axis], np.broadcast_to(value, (7, 10)), err_msg=f"{name}[{axis}]")


def test_templates_function_constants_and_threadgroup_arguments():
    source = (
        HEAD
        + """
    constant bool negate [[function_constant(3)]];
    constant int shift [[function_constant(4)]];
    template <typename T, int N>
    [[kernel]] void f(device const T* x [[buffer(0)]], device T* y [[buffer(2)]], const constant T& add [[buffer(5)]],
        device T* unused [[buffer(6), function_constant(negate)]],
        threadgroup T* shared [[threadgroup(0)]], ushort i [[thread_position_in_threadgroup]]) {
      shared[i] = x[i] * N + shift + add;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = negate ? -shared[N - 1 - i] : shared[N - 1 - i];
    }
    template [[host_name("f_float")]] [[kernel]] decltype(f<float, 8>) f<float, 8>;
    """
    )
    kernel = compile_kernel(Source(source), "f", template="int, 8", constants={3: True, 4: 100})
    x = np.arange(8, dtype=np.int32)
    result = launch(
        kernel,
        {0: x, 2: Output((8,), np.dtype(np.int32)), 5: np.array(1, np.int32)},
        memory={0: 32},
        grid=(8, 1, 1),
        threadgroup=(8, 1, 1),
    )
    np.testing.assert_array_equal(result.buffers[2], -(x * 8 + 101)[::-1])


def test_denormals_are_kept_or_flushed_and_the_process_keeps_its_own():
    kernel = compiled("y[i] = x[i] * 0.5;")
    tiny = np.full(4, 2.0**-126, np.float32)
    assert run(kernel, tiny)[0][0] == 2.0**-127
    assert run(kernel, tiny, schedule=Schedule(flush_denormals=True))[0][0] == 0
    assert (tiny * np.float32(0.5))[0] == 2.0**-127


def test_integer_functions():
    calls = {
        "popcount(v)": lambda v: int(v).bit_count(),
        "clz(v)": lambda v: 32 - int(v).bit_length(),
        "ctz(v)": lambda v: 32 if v == 0 else (int(v) & -int(v)).bit_length() - 1,
        "reverse_bits(v)": lambda v: int(f"{v:032b}"[::-1], 2),
        "rotate(v, 5u)": lambda v: (v << 5 | v >> 27) & 0xFFFFFFFF,
        "mulhi(v, 0x80000001u)": lambda v: v * 0x80000001 >> 32,
        "addsat(v, 0xf0000000u)": lambda v: min(v + 0xF0000000, 0xFFFFFFFF),
        "extract_bits(v, 3, 7)": lambda v: v >> 3 & 127,
        "insert_bits(v, 5u, 4, 3)": lambda v: (v & ~0x70) | 0x50,
        "clamp(v, 3u, 9u)": lambda v: min(max(v, 3), 9),
        "as_type<uint>(as_type<float>(v))": lambda v: v,
    }
    lines = "\n".join(f"y[{row} * 4 + i] = {call};" for row, call in enumerate(calls))
    source = source_of(["device const uint* x", "device uint* y"], f"uint v = x[i];\n{lines}")
    x = np.array([0, 1, 0x3F800123, 0xFFFFFFF0], np.uint32)
    left = launch(
        compile_kernel(source, "f"),
        {0: x, 1: Output((len(calls), 4), np.dtype(np.uint32))},
        grid=(4, 1, 1),
        threadgroup=(4, 1, 1),
    ).buffers[1]
    for (call, model), got in zip(calls.items(), left, strict=True):
        assert got.tolist() == [model(int(v)) for v in x], call


def test_wrong_arguments_are_named():
    kernel = compiled("y[i] = x[i];")
    output = Output((4,), np.dtype(np.float32))
    sizes = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1)}
    with pytest.raises(InvalidLaunch, match=r"^f: buffer 1 \('y'\) is not given; its buffers are 0 'x', 1 'y'$"):
        launch(kernel, {0: X}, **sizes)
    with pytest.raises(InvalidLaunch, match=r"^f: buffer 0 \('x'\) is of float32; got float64$"):
        launch(kernel, {0: X.astype(np.float64), 1: output}, **sizes)
    with pytest.raises(InvalidLaunch, match=r"^f: buffer 1 \('y'\) is of float32; got int32$"):
        launch(kernel, {0: X, 1: Output((4,), np.dtype(np.int32))}, **sizes)
    with pytest.raises(InvalidLaunch, match=r"^f has no buffer 2; its buffers are 0 'x', 1 'y'$"):
        launch(kernel, {0: X, 1: output, 2: X}, **sizes)
    with pytest.raises(InvalidLaunch, match=r"threadgroup of \(2048, 1, 1\) has 2048 threads; Metal has at most 1024"):
        launch(kernel, {0: X, 1: output}, grid=(4096, 1, 1), threadgroup=(2048, 1, 1))
    with pytest.raises(InvalidLaunch, match=r"^f: grid is three positive sizes, x, y and z; got \(4, 0, 1\)$"):
        launch(kernel, {0: X, 1: output}, grid=(4, 0, 1), threadgroup=(1, 1, 1))
