"""An op, ``soft_sign``, with a kernel in C++ for the cpu backend and one in Metal for the mlx backend."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import m2ml

HERE = Path(__file__).parent


@m2ml.op(shapes="x[*b] -> [*b]")
def soft_sign(x, /):
    """``x / (1 + |x|)``, in ``x``'s shape and dtype; half precision is worked out in float32 and rounded once."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / (1 + jnp.abs(wide))).astype(x.dtype)


@soft_sign.give_samples
def samples():
    for shape in ((), (1,), (7,), (0, 3), (33, 31)):
        yield m2ml.Sample(f"{shape}", (np.random.default_rng(1).normal(0, 10, shape).astype(np.float32),))


@soft_sign.law
def it_is_odd(op, x):
    np.testing.assert_array_equal(op(-x), -op(x))


@soft_sign.fault
def sign_lost(x):
    return abs(soft_sign.definition(x))


def load_cpp():
    from m2ml_cpu.ffi import handler

    call = handler(HERE / "soft_sign.cc")
    return lambda x: call(jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def load_metal():
    import mlx.core as mx

    source = (HERE / "soft_sign.metal").read_text()
    kernel = mx.fast.metal_kernel("soft_sign", ["x"], ["y"], source)
    options = {"threadgroup": (256, 1, 1)}

    def run(x):
        shapes = {"grid": (x.size, 1, 1), "output_shapes": [x.shape], "output_dtypes": [x.dtype]}
        return kernel(inputs=[x.reshape(-1)], template=[("T", x.dtype)], **shapes, **options)[0]

    return run


def something(x):
    """What a kernel's ``accepts`` says: nothing to take a call, or why not."""
    return "" if x.size else "there is nothing to do"


@m2ml.hookimpl
def m2ml_register_ops(register):
    register(soft_sign)


@m2ml.hookimpl
def m2ml_register_kernels(register):
    cpp, metal = HERE / "soft_sign.cc", HERE / "soft_sign.metal"
    register(m2ml.Kernel("soft_sign", "cpu", cpp.name, load_cpp, ("cpu",), dtypes=("float32",), source=cpp))
    gpu = "gpu", "metal (host)"  # the host runs Metal kernels on the CPU, for tests
    register(m2ml.Kernel("soft_sign", "mlx", metal.name, load_metal, gpu, accepts=something, source=metal))
