"""The stand-in for `mlx.core.fast.metal_kernel`: MLX's own text, MLX's own call, MLX's own answers."""

# ruff: noqa: E501, a line for each signature

import re
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from m2ml_kernels.metal_host import InvalidLaunch, KernelFault, Schedule, emulate, emulating, metal_kernel
from m2ml_kernels.metal_host.codegen import Argument, Definition, generate

# Signatures on which the generated text depends: inputs as (dtype, shape), outputs, template, body, options.
SIGNATURES = {
    "plain": ([("float32", (4, 4))], ["float32"], [], "out0[thread_position_in_grid.x] = in0[0];", {}),
    "constant-and-scalar": ([("int32", (3,)), ("float32", ()), ("bfloat16", (2, 2, 2))], ["float16"], [], "out0[0] = in1;", {}),
    "no-attributes": ([("float32", (8,))], ["float32", "bool_"], [], "out0[0] = in0[0]; out1[0] = true;", {}),
    "shapes": ([("float32", (4, 4)), ("uint8", ())], ["int64"], [], "out0[0] = in0_shape[0] + in0_strides[1] + in0_ndim + in1_shape;", {}),
    "templates": ([("float16", (9,))], ["float16"], [("T", "float16"), ("n", -3), ("flag", True)], "T v = in0[n + 3]; out0[0] = v;", {}),
    "atomic": ([("uint32", (64,))], ["float32"], [("T", "bfloat16")], "atomic_fetch_add_explicit(&out0[0], 1.0f, memory_order_relaxed);", {"atomic_outputs": True}),
    "header": ([("complex64", (64,))], ["complex64"], [], "out0[threads_per_threadgroup.y] = one();", {"header": "inline float one() { return 1; }\n"}),
    "every-attribute": ([("uint64", (64,))], ["uint16"], [], "out0[0] = simdgroup_index_in_threadgroup + thread_index_in_simdgroup + dispatch_threads_per_threadgroup.x;", {}),
}  # fmt: skip

PROGRAM = """
import sys, mlx.core as mx
inputs, outputs, template, body, options = {signature!r}
kernel = mx.fast.metal_kernel(name="sig", input_names=[f"in{{i}}" for i in range(len(inputs))],
    output_names=[f"out{{i}}" for i in range(len(outputs))], source=body, **options)
template = [(name, getattr(mx, value) if isinstance(value, str) else value) for name, value in template]
def call(*arrays):
    return kernel(inputs=list(arrays), output_shapes=[(4,)] * len(outputs), output_dtypes=[getattr(mx, o) for o in outputs],
        grid=(4, 1, 1), threadgroup=(4, 1, 1), template=template, verbose=True, stream=mx.gpu)
mx.export_function(sys.argv[1], call, *(mx.zeros(shape, getattr(mx, dtype)) for dtype, shape in inputs))
"""
TYPES = {"float32": "float", "int64": "int64_t", "bool_": "bool", "complex64": "complex64_t"}


def metal_type(dtype):
    return TYPES.get(dtype, f"{dtype}_t")


@pytest.mark.parametrize("case", SIGNATURES)
def test_the_generated_source_is_what_mlx_generates(case, tmp_path):
    inputs, outputs, template, body, options = SIGNATURES[case]
    program = PROGRAM.format(signature=SIGNATURES[case])
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "f.mlxfn")], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    theirs = re.search(r"```\n(.*?)\n```", said.stdout, re.DOTALL)[1]
    definition = Definition("sig", tuple(f"in{i}" for i in range(len(inputs))), tuple(f"out{i}" for i in range(len(outputs))), body, **options)  # fmt: skip
    arguments = [Argument(metal_type(dtype), len(shape), int(np.prod(shape))) for dtype, shape in inputs]
    chosen = [(name, metal_type(value) if isinstance(value, str) else value) for name, value in template]
    assert generate(definition, arguments, [metal_type(dtype) for dtype in outputs], chosen) == theirs


def exponential(a, **options):
    kernel = mx.fast.metal_kernel(
        name="exponential",
        input_names=["inp"],
        output_names=["out"],
        source="""
            uint elem = thread_position_in_grid.x;
            uint loc = elem_to_loc(elem, inp_shape, inp_strides, inp_ndim);
            T tmp = inp[loc];
            out[elem] = metal::precise::exp(tmp);""",
        ensure_row_contiguous=False,
    )
    sizes = {"grid": (a.size, 1, 1), "threadgroup": (256, 1, 1), "output_shapes": [a.shape], "output_dtypes": [a.dtype]}
    return kernel(inputs=[a], template=[("T", a.dtype)], **{**sizes, **options})[0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_example_of_the_documentation(dtype):
    a = mx.random.normal(shape=(6, 8)).astype(dtype)
    with emulate(schedule=Schedule("random", seed=1, workers=2)):
        for view in (a, a[::2], a.T, mx.broadcast_to(a[:1], (3, 8)), a[::-1]):
            got = exponential(view)
            assert got.dtype == dtype
            error = mx.abs(got.astype(mx.float32) - mx.exp(view.astype(mx.float32))).max().item()
            assert error <= {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 0.02}[dtype] * mx.exp(a).max().item()


def test_emulation_begins_and_ends():
    original = mx.fast.metal_kernel
    assert not emulating()
    with emulate():
        assert emulating()
        assert mx.fast.metal_kernel is metal_kernel
    assert mx.fast.metal_kernel is original
    assert not emulating()


def test_gradients_through_a_custom_function():
    """Forward and backward of a kernel whose backward adds with atomics into an output that begins at zero."""
    with emulate():
        forward = mx.fast.metal_kernel(
            name="gather_rows",
            input_names=["x", "rows"],
            output_names=["out"],
            source="uint e = thread_position_in_grid.x; out[e] = x[rows[e / x_shape[1]] * x_shape[1] + e % x_shape[1]];",
        )
        backward = mx.fast.metal_kernel(
            name="gather_rows_grad",
            input_names=["x", "rows", "cotangent"],
            output_names=["x_grad"],
            source="""
                uint e = thread_position_in_grid.x;
                uint place = rows[e / x_shape[1]] * x_shape[1] + e % x_shape[1];
                atomic_fetch_add_explicit(&x_grad[place], cotangent[e], memory_order_relaxed);""",
            atomic_outputs=True,
        )

        @mx.custom_function
        def take(x, rows):
            shape = (rows.size, x.shape[1])
            size = {"grid": (rows.size * x.shape[1], 1, 1), "threadgroup": (64, 1, 1)}
            return forward(inputs=[x, rows], output_shapes=[shape], output_dtypes=[x.dtype], **size)[0]

        @take.vjp
        def take_vjp(primals, cotangent, _):
            x, rows = primals
            size = {"grid": (rows.size * x.shape[1], 1, 1), "threadgroup": (64, 1, 1)}
            out = backward(
                inputs=[x, rows, cotangent], output_shapes=[x.shape], output_dtypes=[x.dtype], init_value=0, **size
            )
            return out[0], mx.zeros_like(rows)

        x, rows = mx.random.normal(shape=(5, 3)), mx.array([1, 4, 1, 0])
        mine = mx.grad(lambda x: (take(x, rows) ** 2).sum())(x)
        theirs = mx.grad(lambda x: (x[rows] ** 2).sum())(x)
        assert mx.allclose(mine, theirs, rtol=1e-6).item()


def test_math_modes():
    source = """
        #if defined(__FAST_MATH__) && __FAST_MATH__
        out[thread_position_in_grid.x] = 1;
        #else
        out[thread_position_in_grid.x] = inp[0];
        #endif"""
    sizes = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_shapes": [(4,)], "output_dtypes": [mx.float32]}
    for mode, expected in {"safe": 0, "fast": 1}.items():
        kernel = metal_kernel("mode", ["inp"], ["out"], source, compile_options={"math_mode": mode})
        assert kernel(inputs=[mx.zeros(4)], **sizes)[0].tolist() == [expected] * 4
    with pytest.raises(ValueError, match="Expected math_mode to be 'safe', 'relaxed', or 'fast'"):
        metal_kernel("mode", ["inp"], ["out"], source, compile_options={"math_mode": "precise"})
    with pytest.raises(ValueError, match="Unknown compile option `unknown`"):
        metal_kernel("mode", ["inp"], ["out"], source, compile_options={"unknown": "value"})


def test_mistakes_are_told():
    sizes = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_shapes": [(4,)], "output_dtypes": [mx.float32]}
    kernel = metal_kernel(
        "beyond", ["inp"], ["out"], "\nout[thread_position_in_grid.x] = inp[thread_position_in_grid.x + 4];"
    )
    with pytest.raises(
        KernelFault, match=r"beyond\.metal:\d+: out of bounds: an access 0 bytes past the end of buffer 'inp'"
    ):
        kernel(inputs=[mx.zeros(4)], **sizes)
    with pytest.raises(ValueError, match=r"Expected `inputs` to have size 1 but got size 2"):
        kernel(inputs=[mx.zeros(4), mx.zeros(4)], **sizes)
    with pytest.raises(ValueError, match="Must specify at least one output"):
        metal_kernel("none", ["inp"], [], "")
    with (
        emulate(),
        pytest.raises(InvalidLaunch, match=r"when it is called, which mx\.compile and mx\.vmap do not allow"),
    ):
        mx.vmap(exponential)(mx.zeros((2, 4)))


def test_a_divergent_barrier_raises():
    source = "if (thread_position_in_grid.x >= 2) return; threadgroup_barrier(mem_flags::mem_none); out[0] = inp[0];"
    kernel = metal_kernel("divergent", ["inp"], ["out"], source)
    sizes = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    with pytest.raises(KernelFault, match=r"divergent: divergent\.metal:\d+: divergent barrier: thread 2 has returned"):
        kernel(inputs=[mx.zeros(1)], **sizes)
