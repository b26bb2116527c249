"""What a launch is said to cost is what its source says it does, counted by hand."""

from pathlib import Path

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output, Source, Variant, compile_kernel, launch
from m2ml_kernels.metal_host import counts as counting
from m2ml_kernels.metal_host.flops import Arithmetic
from metal_cases import HEAD, compiled, run

import m2ml.ops  # noqa: F401 - registers the ops
from m2ml.equivalence.kernels import Subject, costs_of, metal_kernels

X = np.random.default_rng(0).uniform(0.5, 1, 64).astype(np.float32)
COUNTED = Variant(counted=True)
README = (Path(__file__).parents[2] / "README.md").read_text()


def counts_of(body, *, x=X, **options):
    return run(compiled(body, variant=COUNTED), x, **options)[1].counts


def test_a_launch_is_not_counted_unless_asked():
    assert run(compiled("y[i] = x[i];"), X)[1].counts is None


def test_bytes_are_those_of_every_access_and_of_distinct_ones():
    counts = counts_of("float s = 0; for (uint k = 0; k < 3; ++k) s += x[(i + k) % 64]; if (i < 16) y[i] = s;")
    x, y = counts.buffers[0], counts.buffers[1]
    assert (x.loaded, x.stored, x.distinct_loaded) == (3 * 256, 0, 256)
    assert (y.loaded, y.stored, y.distinct_stored, y.distinct) == (0, 64, 64, 64)


def test_re_reads_of_a_large_buffer_move_its_bytes_again():
    x = np.tile(X, 512)
    body = "float s = x[i]; threadgroup_barrier(mem_flags::mem_device); y[i] = s + x[i];"
    counts = counts_of(body, x=x)
    assert x.nbytes > counting.CACHED
    assert counts.moved == 3 * x.nbytes
    assert counts.distinct == 2 * x.nbytes
    assert counts_of(body).moved == 2 * X.nbytes  # a small one stays in the cache
    assert counts.floor() == pytest.approx(3 * x.nbytes / 400e9)


FLOPS = {
    "y[i] = x[i];": (0, 0),
    "y[i] = x[i] * 2 + 1;": (128, 0),
    "y[i] = fma(x[i], 2.0, 1.0) / x[i] - min(x[i], 0.5);": (64 * 5, 0),
    "y[i] = sqrt(x[i]) + float(half(x[i]) * half(2));": (64 * 3, 0),
    "y[i] = exp(x[i]) + log(x[i]);": (64, 128),
    "y[i] = i < 32 ? x[i] * 3 : x[i];": (32, 0),
    "float s = 1; for (uint k = 0; k < i; ++k) s *= x[k]; y[i] = s;": (sum(range(64)), 0),
    "y[i] = simd_sum(x[i]);": (2 * 31, 0),
    "y[i] = quad_sum(x[i]);": (16 * 3, 0),
}


@pytest.mark.parametrize("body", FLOPS)
def test_flops_are_those_of_the_formula(body):
    assert counts_of(body).arithmetic == Arithmetic(*FLOPS[body])


def test_a_product_of_matrices_is_a_thousand_flops():
    source = (
        HEAD
        + """kernel void f(device const float* a, device float* d) {
      simdgroup_float8x8 A, D(0.0f);
      simdgroup_load(A, a, 8);
      simdgroup_multiply_accumulate(D, A, A, D);
      simdgroup_store(D, d, 8);
    }"""
    )
    buffers = {0: X, 1: Output((64,), np.dtype(np.float32))}
    kernel = compile_kernel(Source(source), "f", variant=COUNTED)
    counts = launch(kernel, buffers, grid=(32, 1, 1), threadgroup=(32, 1, 1)).counts
    assert counts.flops == 2 * 8 * 8 * 8
    assert counts.operations == dict.fromkeys(("simdgroup_load", "simdgroup_multiply_accumulate", "simdgroup_store"), 1)
    assert (counts.buffers[0].loaded, counts.buffers[1].stored) == (256, 256)


def test_operations_and_threadgroup_memory():
    body = """threadgroup float t[64];
      t[i] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = simd_max(t[63 - i]); threadgroup_barrier(mem_flags::mem_none);"""
    counts = counts_of(body)
    assert counts.operations == {"simd_max": 2, "threadgroup_barrier": 2}
    assert (counts.threadgroup_bytes, counts.threadgroup_loaded, counts.threadgroup_stored) == (256, 256, 256)
    assert counts.buffers[0].loaded == 256


# The index a thread reads at, of 1024: how many cache lines of 128 bytes 32 threads take, and how many turns of the
# 32 banks of threadgroup memory; then how many they need.
PATTERNS = {
    "i % 32": (1, 1, 1),
    "i % 32 * 2": (2, 2, 1),
    "i % 32 * 32": (32, 32, 1),
    "i % 32 * 33 % 1024": (32, 1, 1),
    "i % 32 + 16": (2, 1, 1),
    "0": (1, 1, 1),
}


@pytest.mark.parametrize("index", PATTERNS)
def test_accesses_of_a_simdgroup_are_coalesced_or_not(index):
    lines, turns, least = PATTERNS[index]
    x = np.tile(X, 16)
    counts = counts_of(f"y[i] = x[{index}];", x=x, grid=(32, 1, 1))
    (place,) = (place for place in counts.places if place.verb == "loads from")
    assert (place.file, place.line, place.memory) == ("kernel.metal", 4, "x")
    assert (place.count, place.spans, place.least) == (1, lines, least)
    body = f"threadgroup float t[1024]; for (uint k = i; k < 1024; k += 32) t[k] = x[k];\ny[i] = t[{index}];"
    counts = counts_of(body, x=x, grid=(32, 1, 1))
    (place,) = (p for p in counts.places if p.verb == "loads from" and p.memory == "threadgroup memory")
    assert (place.line, place.count, place.spans, place.least) == (5, 1, turns, least)
    assert counts.free_of_conflicts == pytest.approx((least + 32) / (turns + 32))


def test_a_vector_is_one_access_and_a_loop_over_neighbours_is_not():
    whole = counts_of("((device float4*)y)[i] = ((device const float4*)x)[i];", size=64, grid=(16, 1, 1))
    assert whole.coalesced == 1
    assert {(place.count, place.spans) for place in whole.places} == {(1, 2)}
    loop = counts_of("for (uint k = 0; k < 4; ++k) y[4 * i + k] = x[4 * i + k];", size=64, grid=(16, 1, 1))
    assert loop.coalesced == pytest.approx(0.5)
    assert "kernel.metal:4: loads from x: 8 cache lines where 4 would do" in map(str, loop.places)


def test_atomics_are_counted_and_still_right():
    body = """device atomic_uint* z = (device atomic_uint*)y;
      atomic_fetch_add_explicit(z, i, memory_order_relaxed); atomic_fetch_max_explicit(z + 1, i, memory_order_relaxed);
      atomic_store_explicit(z + 2, 7, memory_order_relaxed);"""
    y, result = run(compiled(body, variant=COUNTED), X)
    y = y.view(np.uint32)
    fresh = 0xFFFFFFFF  # what uninitialized memory holds
    assert y[:3].tolist() == [(fresh + sum(range(64))) % 2**32, fresh, 7]
    assert result.counts.buffers[1].distinct_stored == 12


@pytest.mark.parametrize(("op", "kernel"), metal_kernels(), ids=lambda item: getattr(item, "name", ""))
def test_a_kernel_moves_little_more_than_its_op_must(op, kernel):
    """Of the registry, at the op's main sizes; kernels that call others' launches on blocks are those others."""
    sharing = [k for _, k in metal_kernels() if k.source == kernel.source]
    if kernel is not sharing[0]:
        return
    assert list(op.main()), f"{op.name} has a Metal kernel and names no main sizes: give it some with give_main"
    for cost in costs_of(Subject(op, kernel)):
        assert cost.launches
        assert 0.99 < cost.ratio <= 1.15, cost.text
        row = f"| `{kernel.name}` | {cost.sample.name} | {cost.moved:,} / {cost.compulsory:,} = {cost.ratio:.3f} |"
        assert row in README, f"{row} is not in the README: put there what `m2ml kernel costs` prints"
