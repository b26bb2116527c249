"""An op, ``soft_sign``, with a kernel in C++ for the cpu backend and one in Metal for the mlx backend."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import m2ml

CPP, METAL = (Path(__file__).parent / f"soft_sign.{kind}" for kind in ("cc", "metal"))


@m2ml.op(shapes="x[*b] -> [*b]")
def soft_sign(x, /):
    """``x / (1 + |x|)``, in ``x``'s shape and dtype; half precision is worked out in float32 and rounded once."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / (1 + jnp.abs(wide))).astype(x.dtype)


def normal(*shape):
    return np.random.default_rng(1).normal(0, 10, shape).astype(np.float32)


@soft_sign.give_samples
def samples():
    for shape in ((), (1,), (7,), (0, 3), (33, 31)):
        yield m2ml.Sample(f"{shape}", (normal(*shape),))


@soft_sign.give_main
def main_sizes():
    yield m2ml.Sample("64 rows of 1024", (normal(64, 1024),))


soft_sign.give_cost(lambda x: (2 * x.size, 2 * x.size * x.dtype.itemsize))  # flops, and the bytes that must be moved


@soft_sign.law
def it_is_odd(op, x):
    np.testing.assert_array_equal(op(-x), -op(x))


@soft_sign.fault
def the_sign_is_lost(x):
    return jnp.abs(soft_sign.definition(x))


def load_cpp():
    from m2ml_cpu.ffi import handler

    call = handler(CPP)
    return lambda x: call(jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@functools.cache
def made(maker):
    return maker("soft_sign", ["x"], ["y"], METAL.read_text())


def run_metal(x):
    import mlx.core as mx  # its maker is looked up at each call: the Metal host may stand in for it

    sizes = {"grid": (x.size, 1, 1), "threadgroup": (256, 1, 1), "output_shapes": [x.shape], "output_dtypes": [x.dtype]}
    return made(mx.fast.metal_kernel)(inputs=[x.reshape(-1)], template=[("T", x.dtype)], **sizes)[0]


def not_empty(x):
    return "" if x.size else "there is nothing to do"


@m2ml.hookimpl
def m2ml_register_ops(register):
    register(soft_sign)


@m2ml.hookimpl
def m2ml_register_kernels(register):
    register(m2ml.Kernel("soft_sign", "cpu", CPP.name, load_cpp, ("cpu",), dtypes=("float32",), source=CPP))
    where = "gpu", "metal (host)"  # the host runs Metal kernels on the CPU
    register(m2ml.Kernel("soft_sign", "mlx", METAL.name, lambda: run_metal, where, accepts=not_empty, source=METAL))
