"""Kernels of the mlx backend: Metal sources on the Metal host against the oracle, CUDA sources through nvcc."""

import itertools
import shutil
import subprocess

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
from m2ml_kernels.metal_host import emulate
from m2ml_mlx.kernels import cuda, metal, source
from m2ml_mlx.kernels.attention import backward_takes

import m2ml
import m2ml.ops  # registers the ops
from m2ml import compat
from m2ml.equivalence.ops import (
    Implementation,
    assert_agrees,
    call_of,
    check_gradient,
    check_values,
    in_dtype,
    what_ran,
)
from m2ml.errors import Disagreement
from m2ml.kernel import select
from m2ml.op import Sample, ops
from m2ml.plugins import registry

HOST = Implementation("mlx", True)
FORWARD = [kernel for kernel in metal.KERNELS if kernel.op in ops]


@pytest.fixture
def metal_host():
    """MLX with Metal's kernels on the CPU: its device is "metal (host)"."""
    with emulate():
        assert [device.kind for device in registry.get("mlx").devices()] == ["metal (host)"]
        yield


def taken(op, dtype):
    """The samples of an op that a Metal kernel runs here."""
    every = list(op.samples())
    return [s for s, ran in zip(every, what_ran(op, every, "mlx", dtype), strict=True) if ran.startswith("metal/")]


def check_every_sample(op):
    for sample in taken(op, np.float32):
        check_values(op, sample, np.float32, [HOST])


def test_gradients_of_a_linear_loss_are_those_of_its_forward_pass(metal_host):
    for sample in taken(ops["linear_cross_entropy"], np.float32)[::2]:
        check_gradient(ops["linear_cross_entropy"], sample, np.float32, [HOST])


def test_long_rows_are_summed_by_many_simdgroups(metal_host):
    """More elements than a threadgroup's threads take once: the loops and the sum over simdgroups."""
    x = np.random.default_rng(0).standard_normal((3, 5003)).astype(np.float32)
    for name, args in (("add_rms_norm", (x, x[::-1].copy(), x[0])), ("softmax_cross_entropy", (x, np.arange(3)))):
        op, sample = ops[name], Sample("long", args, {"label_smoothing": 0.1} if name[0] == "s" else {})
        assert list(what_ran(op, [sample], "mlx", np.float32)) == [f"metal/{name}"]
        assert_agrees(name, call_of(op, sample), call_of(op.definition, sample), args, [HOST])


#: Rows of logits in which many are equal, some are not there, and some rows hold nothing to draw.
def drawn_from(vocabulary, dtype):
    rng = np.random.default_rng(vocabulary)
    logits = np.round(rng.standard_normal((9, vocabulary)) * 4).astype(dtype)
    logits[1, ::2] = -np.inf
    logits[2], logits[3, 0], logits[4, -1] = -np.inf, np.nan, np.inf
    logits[5] = 0
    return logits, rng.integers(0, 2**32, 9, np.uint32), rng.integers(-2, vocabulary + 2, (9, 7), np.int32)


DRAWS = [
    {},
    {"top_p": 0.7},
    {"top_k": 3, "temperature": 0.6, "repetition_penalty": 1.3},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.01, "temperature": 2.0},
]


@pytest.mark.parametrize("static", DRAWS, ids=str)
@pytest.mark.parametrize("vocabulary", [7, 1100])
def test_metal_draws_the_very_tokens_of_the_definition(metal_host, vocabulary, static):
    """Not only the likely ones: the same, where tokens are equally likely and where sums end."""
    args = drawn_from(vocabulary, np.float32 if vocabulary < 1000 else jnp.bfloat16)
    assert list(what_ran(ops["sample_token"], [Sample("", args, static)], "mlx", np.float32)) == ["metal/sample_token"]
    draw = m2ml.jit(lambda *xs: ops["sample_token"](*xs, **static))
    expected = m2ml.get(draw.on("cpu")(*args))
    assert list(expected[2:5]) == [-1, -1, -1]  # nothing to draw from, NaN, infinity
    np.testing.assert_array_equal(m2ml.get(draw.on("mlx")(*args)), expected)


ROWS = np.random.default_rng(1).standard_normal((6, 1500)).astype(np.float32)
#: Arguments that one threadgroup does not take: each begins where the one before has ended.
MANY = {
    "swiglu": ((ROWS, ROWS[::-1].copy()), {}),
    "batch_norm_act": ((ROWS, ROWS[0], ROWS[1] ** 2 + 1, ROWS[2], ROWS[3]), {"train": False, "activation": "silu"}),
    "adamw_update": (([ROWS], [ROWS[::-1]], [ROWS**2], [ROWS + 1], np.int32(4), np.float32(0.1)), {}),
}


def check_many(name):
    args, static = MANY[name]
    op, sample = ops[name], Sample("many threadgroups", args, static)
    assert list(what_ran(op, [sample], "mlx", np.float32)) == [f"metal/{name}"]
    assert_agrees(name, call_of(op, sample), call_of(op.definition, sample), args, [HOST])


@pytest.mark.parametrize("name", MANY)
def test_threadgroups_share_an_array_without_gaps(metal_host, monkeypatch, name):
    check_many(name)
    text = source.text
    monkeypatch.setattr(source, "text", lambda path: text(path).replace("4 * threadgroup", "3 * threadgroup"))
    with pytest.raises(Disagreement):
        check_many(name)


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


HEADS = numbers(2, 40, 4, 32) * 3, numbers(2, 130, 2, 32), numbers(2, 130, 2, 33)
NORMS = (numbers(300, 33), numbers(33)), (numbers(300, 33) + 9, numbers(33), numbers(33) + 1)
#: Arguments on which what MLX rounds to half precision on the way would be seen.
TELLING = [
    ("rms_norm", NORMS[0], {}),
    ("layer_norm", NORMS[1], {}),
    ("attention", HEADS, {"causal": True}),
    ("attention", (*HEADS, numbers(2, 1, 40, 130)), {"causal": True, "window": 20}),
    ("softmax_cross_entropy", (numbers(20, 1000) * 5, np.arange(20, dtype=np.int32)), {}),
]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "args", "static"), TELLING, ids=[case[0] for case in TELLING])
def test_mlx_functions_round_half_precision_once(name, args, static, dtype):
    op, sample = ops[name], Sample("telling", args, static)
    given = in_dtype(sample, dtype)
    assert_agrees(name, call_of(op, sample), call_of(op.definition, sample), given, [HOST])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "args"), [("rms_norm", NORMS[0]), ("layer_norm", NORMS[1])])
def test_gradients_of_norms_of_many_rows(name, args, dtype):
    """In half precision MLX's own derivative rounds inside, and adds 300 rows in it: the definition's runs."""
    check_gradient(ops[name], Sample("many rows", args), dtype, [HOST])


#: Why MLX's own functions decline: the op, its arguments, what is said.
DECLINED = [
    ("rms_norm", (HEADS[0], np.ones(32, np.float16)), {}, "a weight has another dtype"),
    ("layer_norm", (numbers(3, 0), None, None), {}, "the last axis is empty"),
    ("attention", HEADS, {"soft_cap": 2.0}, "MLX's has no soft cap"),
    ("attention", HEADS, {"return_lse": True}, "gives no log-sum-exp"),
    ("sample_token", (numbers(3, 5), None, None), {"temperature": 0.0}, "it is for gpu and metal (host)"),
    ("attention", (HEADS[0], *(x.astype(np.float16) for x in HEADS[1:])), {}, "q, k and v have different dtypes"),
    ("softmax_cross_entropy", (numbers(3, 4), np.arange(3)), {"z_loss": 0.1}, "MLX's has no z_loss"),
    ("softmax_cross_entropy", (numbers(3, 4).astype(np.float16), np.arange(3)), {}, "it does not take float16"),
    ("quantize", (numbers(2, 32),), {"mode": "mxfp4"}, "MLX rounds mxfp4 otherwise"),
]


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="the reasons are those of MLX on a CPU")
@pytest.mark.parametrize(("name", "args", "static", "said"), DECLINED)
def test_mlx_functions_decline_what_they_lack(name, args, static, said):
    call, leaves = ops[name].bind(args, static)
    selection = select(call, [compat.abstract(x) for x in leaves], "mlx", "cpu")
    assert selection.kernel is None
    assert any(said in reason for reason in selection.reasons.values()), dict(selection.reasons)


def test_the_derivative_of_attention_declines_masks_to_learn_and_many_scores():
    static = tuple({"return_lse": False, "soft_cap": None}.items())

    def said(length, wrt=(0, 1, 2), static=static):
        q = jax.ShapeDtypeStruct((1, length, 4, 64), np.float32)
        mask = jax.ShapeDtypeStruct((length, length), np.float32)
        return backward_takes((q, q, q, mask, None), (q, q), (q,), wrt=wrt, static=static)

    assert said(128) == ""
    assert said(128, wrt=(1,)) == ""
    assert said(128, wrt=(0, 3)) == "MLX's fused derivative has none of a mask"
    assert said(8192) == "268,435,456 scores may be kept"
    assert "MLX's has no soft cap" in said(128, static=(("return_lse", False), ("soft_cap", 2.0)))


@pytest.mark.parametrize("kernel", FORWARD, ids=lambda k: k.name)
def test_a_gpu_would_run_each_metal_kernel_on_some_sample(monkeypatch, kernel):
    """However few rows it declines; what is chosen is looked at, nothing runs."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    chosen = set()
    for sample in ops[kernel.op].samples():
        call, leaves = ops[kernel.op].bind(in_dtype(sample, np.float32), sample.static)
        found = select(call, [compat.abstract(x) for x in leaves], "mlx", "gpu").kernel
        chosen.add(found.name if found else "")
    assert kernel.name in chosen


def test_explain_says_that_metal_runs_on_the_host(metal_host):
    gate = numbers(4, 8)
    jitted = m2ml.jit(lambda x: ops["swiglu"](x, x), backend="mlx")
    assert "swiglu: kernel metal/swiglu" in str(jitted.explain(gate))
    np.testing.assert_allclose(m2ml.get(jitted(gate)), gate * gate / (1 + np.exp(-gate)), rtol=1e-5)


#: Wrong bodies: the file, what stands there, what is put in its place.
WRONG = [
    ("swiglu", "k < 4", "k < 1"),
    ("swiglu", "T(silu", "T(sigmoid"),
    ("add_rms_norm", "size_t(threadgroup_position_in_grid.x) * n", "0"),
    ("add_rms_norm", "+ eps", ""),
    ("add_rms_norm", "WEIGHTED ?", "false ?"),
    ("batch_norm_act", "i % channels", "i / channels % channels"),
    ("batch_norm_act", "v >= 6.0f", "false"),
    ("adamw_update", "numbers[5]", "0.0f"),
    ("adamw_update", "step += numbers[6] * p;", ""),
    ("rope", "row / heads", "row % heads"),
    ("rope", "* magnitude, s", ", s"),
    ("sample_token", "before + sum > share", "before + sum > 2 * share"),
    ("sample_token", "x > 0.0f ?", "x < 0.0f ?"),
    ("sample_token", "if (limits[1] >= 0)", "if (false)"),
    ("sample_token", "if (numbers[3] < 1.0f)", "if (false)"),
    ("softmax_cross_entropy", "label == ignore_index", "false"),
    ("softmax_cross_entropy", "size_t(row) * size", "0"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG, ids=lambda text: text if text.isidentifier() else "")
def test_a_wrong_body_is_caught(metal_host, monkeypatch, name, right, wrong):
    text = source.text
    path = next(path for path in (f"metal/{name}.metal", f"metal/{name}.h") if right in text(path))
    monkeypatch.setattr(
        source, "text", lambda asked: text(asked).replace(right, wrong) if asked == path else text(asked)
    )
    with pytest.raises(Disagreement):
        check_every_sample(ops[name])


def test_a_metal_kernel_says_why_it_does_not_run():
    shape = jax.ShapeDtypeStruct((2, 9), np.float32)
    with emulate():
        kernel = next(k for k in metal.KERNELS if k.op == "swiglu")
        assert kernel.accepts(shape, shape) == ""
        assert "different dtypes" in kernel.accepts(shape, jax.ShapeDtypeStruct((2, 9), np.float16))
        norm = next(k for k in metal.KERNELS if k.op == "batch_norm_act").accepts
        assert norm(shape, train=True, activation="relu") == ""
        assert norm(shape, train=False, activation="gelu") == "it does not have the activation gelu"
    assert "for fewer than 8 rows, here 2" in source.worthwhile(shape)
    assert source.worthwhile(jax.ShapeDtypeStruct((8, 9), np.float32)) == ""
    assert source.worthwhile(jax.ShapeDtypeStruct((0, 9), np.float32)) == "there are no elements"
    assert "more than it counts" in source.worthwhile(jax.ShapeDtypeStruct((2**20, 2**11), np.float32))


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_without_metal_a_kernel_says_so():
    shape = jax.ShapeDtypeStruct((16, 9), np.float32)
    for kernel in (k for k in metal.KERNELS if k.op == "swiglu"):
        assert kernel.accepts(shape, shape) == "there is no Metal"


CUDA_TYPES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int32: "int32_t"}


class Cuda:
    """Stands in for MLX's maker of CUDA kernels: writes what MLX writes around a body, and runs nothing."""

    def __init__(self):
        self.text = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <cstdint>\n"
        self.text += (
            "struct Shape { int32_t sizes[10]; __device__ int operator[](int i) const { return sizes[i]; } };\n"
        )
        self.count = 0

    def __call__(self, name, input_names, output_names, source, header):
        def call(*, inputs, output_shapes, output_dtypes, grid, threadgroup, template):
            arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
            parameters = []
            for array, given in zip(arrays, input_names, strict=True):
                parameters.append(f"const {CUDA_TYPES[array.dtype]}* {given}")
                if f"{given}_shape" in source:
                    parameters.append(f"const __grid_constant__ Shape {given}_shape")
            pairs = zip(output_dtypes, output_names, strict=True)
            parameters += [f"{CUDA_TYPES[dtype]}* {given}" for dtype, given in pairs]
            chosen = [self.constant(*pair) for pair in template]
            body = "\n".join([*chosen, source])
            self.text += "" if header in self.text else header
            self.text += f"__global__ void {name}_{self.count}({', '.join(parameters)}) {{\n{body}\n}}\n"
            self.count += 1
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

        return call

    def constant(self, name, value):
        if isinstance(value, bool):
            return f"constexpr bool {name} = {str(value).lower()};"
        return f"using {name} = {CUDA_TYPES[value]};"


@pytest.fixture
def cuda_text(monkeypatch):
    """The CUDA sources of every kernel on a sample of its op in every dtype."""
    made = Cuda()
    monkeypatch.setattr(mx.fast, "cuda_kernel", made)
    backend = registry.get("mlx")
    for kernel in cuda.KERNELS:
        samples = [s for s in ops[kernel.op].samples() if all(np.size(x) for x in jax.tree.leaves(s.args))]
        for sample, dtype in itertools.product(samples[:2], (np.float32, jnp.bfloat16, np.float16)):
            call, leaves = ops[kernel.op].bind(in_dtype(sample, dtype), sample.static)
            outs = jax.tree.leaves(call.run(kernel.loaded, [backend.from_host(np.asarray(x)) for x in leaves]))
            expected = jax.tree.leaves(call.out(leaves))
            assert [tuple(y.shape) for y in outs] == [y.shape for y in expected]
    return made.text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, which compiles CUDA sources, is not installed")
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_cuda_sources_compile(cuda_text, tmp_path, wrong):
    """To PTX: a check of the language, not of what they compute."""
    file = tmp_path / "kernels.cu"
    file.write_text(cuda_text.replace("eps[0]", "eps[0]->x") if wrong else cuda_text)
    command = ["nvcc", "-ptx", "-std=c++17", "-arch=sm_80", str(file), "-o", str(tmp_path / "kernels.ptx")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode != 0) == wrong, said.stderr
