"""What the tests of the Metal host share: kernels written in a line or two, and how they are run."""

import numpy as np
from m2ml_kernels.metal_host import Output, Source, compile_kernel, launch

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


def source_of(parameters, body, *, head=""):
    """A kernel `f` of these parameters and the thread's position `i`; its body begins on line 4."""
    declared = ", ".join([*parameters, "uint i [[thread_position_in_grid]]"])
    return Source(f"{HEAD}{head}kernel void f({declared}) {{\n{body}\n}}\n")


def compiled(body, *, parameters=(), **options):
    """A kernel that reads `x` and writes `y`, both float."""
    return compile_kernel(source_of(["device const float* x", "device float* y", *parameters], body), "f", **options)


def run(kernel, *inputs, out=np.float32, size=None, grid=None, threadgroup=None, **options):
    """Launch with one thread for each element of the first input; give the output and the whole result."""
    inputs = [np.ascontiguousarray(array) for array in inputs]
    count = size or inputs[0].size
    result = launch(
        kernel,
        {**dict(enumerate(inputs[:1])), 1: Output((count,), np.dtype(out)), **dict(enumerate(inputs[1:], 2))},
        grid=grid or (count, 1, 1),
        threadgroup=threadgroup or (min(count, 256), 1, 1),
        **options,
    )
    return result.buffers.get(1), result
