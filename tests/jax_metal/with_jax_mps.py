"""What jax-mps' own Python files do on a CPU, alone and under m2ml: run by test_wheels in an environment that has them.

Prints, as JSON, what disagreed: its fused calls by its own CPU lowerings against the ops' definitions in float64, and
Flax models traced by m2ml while its replacements are in place.
"""

import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.backend import register_backend_factory
from jaxlib import xla_client

STOCK = {"gelu": jax.nn.gelu, "attention": jax.nn.dot_product_attention, "norm": nnx.LayerNorm.__call__}

#: m2ml may be imported before JAX starts, or after.
if "late" not in sys.argv:
    import m2ml

register_backend_factory("mps", xla_client.make_cpu_client, priority=-1)
jax.devices("cpu")
from jax_plugins.mps import ops as own  # noqa: E402

own.register_fused_ops()
own.patch_jax_functions()

import fused_calls  # noqa: E402
from m2ml_jax_metal.kernels import KERNELS  # noqa: E402
from m2ml_jax_metal.providers import PROVIDERS  # noqa: E402

import m2ml.ops  # noqa: E402
from m2ml import XlaBackend  # noqa: E402
from m2ml.equivalence.ops import Implementation, check_gradient, check_values, check_vmap, what_ran  # noqa: E402
from m2ml.op import ops  # noqa: E402
from m2ml.plugins import registry  # noqa: E402

warnings.simplefilter("ignore")
ON = Implementation("jax_metal", True)


def fused():
    """Which calls were made, and which samples disagree."""
    registry.discover()
    registry._entries["jax_metal"].backend = XlaBackend("jax_metal", "cpu")
    seen, wrong = set(), {}
    with fused_calls.stand_in(fused_calls.theirs(), PROVIDERS["jax-mps"], seen):
        for kernel in KERNELS:
            if kernel.op not in ops or "jax-mps" not in kernel.about:
                continue
            op, every = ops[kernel.op], list(ops[kernel.op].samples())
            ran = what_ran(op, every, "jax_metal", np.float32)
            taken = [s for s, name in zip(every, ran, strict=True) if name == kernel.name]
            for i, sample in enumerate(taken):
                checks = [check_values] if i % 5 else [check_values, check_gradient]
                for check in checks:
                    try:
                        check(op, sample, np.float32, [ON])
                    except Exception as error:
                        wrong[f"{check.__name__} {op.name} {sample.name}"] = str(error)[:300]
            try:
                check_vmap(op, taken[0], [ON])
            except Exception as error:
                wrong[f"vmap {op.name} {taken[0].name}"] = str(error)[:300]
    return sorted(seen), wrong


def attend(mask):
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask)


def bug():
    """How far the replacement of attention is from JAX's where heads are as many as queries."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 8)).astype("float32")
    mask = jnp.tril(jnp.ones((4, 4), bool))[None, None]
    wanted = STOCK["attention"](q, k, v, mask=mask)
    return float(jnp.abs(jax.jit(attend(mask))(q, k, v) - wanted).max())


def under_m2ml():
    """Per backend, how far values and second derivatives are from those of JAX and Flax before the replacement."""
    rng, found = np.random.default_rng(0), {}
    q, k, v = rng.normal(size=(3, 2, 4, 4, 8)).astype("float32")
    x = rng.normal(size=(2, 4, 16)).astype("float32")
    mask = jnp.tril(jnp.ones((4, 4), bool))[None, None]
    layer, heads = nnx.LayerNorm(16, rngs=nnx.Rngs(0)), nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0))
    cases = {
        "attention": (attend(mask), STOCK["attention"](q, k, v, mask=mask), (q, k, v)),
        "gelu, second derivative, mapped": (
            jax.vmap(jax.grad(jax.grad(lambda x: jax.nn.gelu(x)))),
            jax.vmap(jax.grad(jax.grad(STOCK["gelu"])))(x.ravel()),
            (x.ravel(),),
        ),
        "layer norm, jvp": (
            lambda x: jax.jvp(layer, (x,), (x,))[1],
            jax.jvp(lambda x: STOCK["norm"](layer, x), (x,), (x,))[1],
            (x,),
        ),
        "flax attention": (lambda x: heads(x, mask=mask), stock_heads(heads, x, mask), (x,)),
    }
    for name, (fn, wanted, args) in cases.items():
        program = m2ml.jit(fn).program(*args)
        left = [primitive for primitive in program.primitives if primitive.startswith("mps.")]
        for backend in ("cpu", "reference", "mlx"):
            got = m2ml.get(m2ml.jit(fn).on(backend)(*args))
            found[f"{name} on {backend}"] = [float(np.abs(got - np.asarray(wanted)).max()), left]
    return found


def stock_heads(heads, x, mask):
    """Flax's attention with JAX's own function in its place."""
    replaced = jax.nn.dot_product_attention
    jax.nn.dot_product_attention = STOCK["attention"]
    try:
        return heads(x, mask=mask)
    finally:
        jax.nn.dot_product_attention = replaced


def kept_elsewhere():
    """A reference that m2ml cannot find: its primitive runs by its own definition on every backend."""
    held = [jax.nn.gelu]
    x = np.linspace(-3, 3, 7, dtype="float32")
    wanted = np.asarray(STOCK["gelu"](x))
    return {
        backend: float(np.abs(m2ml.get(m2ml.jit(lambda x: held[0](x)).on(backend)(x)) - wanted).max())
        for backend in ("cpu", "reference", "mlx")
    }


if __name__ == "__main__":
    seen, wrong = fused() if "fused" in sys.argv else ([], {})
    print(
        json.dumps(
            {
                "seen": seen,
                "wrong": wrong,
                "bug": bug(),
                "under m2ml": under_m2ml(),
                "elsewhere": kept_elsewhere(),
                "in place": jax.nn.gelu is not STOCK["gelu"],
            }
        )
    )
