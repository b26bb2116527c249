"""The fused calls of jax-mps by their meaning, for a machine without its library.

`definitions` are our own, from what the calls are documented to compute; `theirs` are the release's own
implementations for other platforms. Either stands in for the library when `stand_in` lowers our call on the CPU.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
from jax.interpreters import mlir
from m2ml_jax_metal import kernels

from m2ml import kernel, ops
from m2ml.ops.quantize import Quantized


def sdpa(q, k, v, mask, *, scale):
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) * scale
    scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == jnp.bool_ else scores + mask
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores, axis=-1), v)


def sdpa_causal(q, k, v, *, scale):
    assert q.shape[-2] == k.shape[-2], "the two versions of jax-mps disagree on where the first query stands"
    return sdpa(q, k, v, jnp.tril(jnp.ones((q.shape[-2], k.shape[-2]), bool)), scale=scale)


def _backward(norm):
    def run(x, *rest, eps):
        *weights, g = rest
        return jax.vjp(lambda *xs: norm.definition(*xs, eps=eps), x, *weights)[1](g)

    return run


def _quantized(packed, scales, biases, group_size, bits):
    return Quantized(packed, scales, biases, bits, group_size, "affine")


definitions = {
    "mps.rms_norm": ops.rms_norm.definition,
    "mps.rms_norm_bwd": _backward(ops.rms_norm),
    "mps.layer_norm": ops.layer_norm.definition,
    "mps.layer_norm_bwd": _backward(ops.layer_norm),
    "mps.sdpa": sdpa,
    "mps.sdpa_causal": sdpa_causal,
    "mps.dequantize": lambda p, s, b, **how: ops.dequantize.definition(_quantized(p, s, b, **how)),
    "mps.quantized_matmul": lambda x, p, s, b, transpose, **how: ops.quantized_matmul.definition(
        x, _quantized(p, s, b, **how)
    ),
}


def theirs():
    """The same calls bound through the installed release's own primitives, by the names that these have."""
    from jax_plugins.mps import ops as own

    found = {}
    for primitive in vars(own).values():
        if isinstance(primitive, jax.extend.core.Primitive):
            found[primitive.name] = primitive.bind
    return found


@contextlib.contextmanager
def stand_in(calls, provider, seen=None):
    """Kernels of ``provider`` run on the CPU, its calls as ``calls`` has them; ``seen`` collects the targets."""

    def run(*operands, target, config, out):
        if seen is not None:
            seen.add(target)
        found = calls[target](*operands, **json.loads(config))
        return list(found) if isinstance(found, list | tuple) else [found]

    before, used = dict(kernel.platforms), list(kernels._used)
    kernels._used[:] = [provider]
    kernel.platforms["cpu"] = "jax_metal"
    mlir.register_lowering(kernels._call_p(), mlir.lower_fun(run, multiple_results=True), platform="cpu")
    try:
        yield
    finally:
        kernels._used[:] = used
        kernel.platforms.clear()
        kernel.platforms.update(before)
