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
        return kernel(inputs=[x], template=[("T", x.dtype)], **shapes, **options)[0]

    return run


@m2ml.hookimpl
def m2ml_register_ops(register):
    register(soft_sign)


@m2ml.hookimpl
def m2ml_register_kernels(register):
    register(m2ml.Kernel("soft_sign", "cpu", "soft_sign.cc", load_cpp, devices=("cpu",), dtypes=("float32",)))
    nothing = lambda x: "" if x.size else "there is nothing to do"  # noqa: E731
    register(m2ml.Kernel("soft_sign", "mlx", "soft_sign.metal", load_metal, devices=("gpu",), accepts=nothing))
