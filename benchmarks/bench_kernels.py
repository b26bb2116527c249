"""The C++ kernels of the cpu backend: against memory bandwidth, against XLA's code for the definition, and PyTorch.

Memory bandwidth is what a threaded copy of as many bytes reaches in the same run: a ratio of 1.43 is 70% of it, one of
1.25 is 80%. PyTorch rows appear where PyTorch is installed. Arguments choose
tables: memory, small, attention, quantized.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Ratio, compare, show
from m2ml_cpu.ffi import handler

import m2ml
from m2ml import ops
from m2ml.ops.quantize import quantize

ROWS, WIDTH, LOOPS = 8192, 1024, 8


def array(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def repeated(step: Callable[..., Any], carry: Any, *constants: Any, kernels: bool = True) -> Callable[[], Any]:
    """``LOOPS`` steps in one program: its buffers are reused, so that no time goes into pages never seen before."""

    def loop(carry: Any, *constants: Any) -> Any:
        return jax.lax.fori_loop(0, LOOPS, lambda _, carry: step(carry, *constants), carry)

    return on_cpu(loop, carry, *constants, kernels=kernels)


def copying(nbytes: int) -> Callable[[], Any]:
    """A threaded copy that moves ``nbytes`` in all, as often as `repeated` repeats."""
    call = handler(Path(__file__).parent / "copy.cc")
    return repeated(lambda x: call(jax.ShapeDtypeStruct(x.shape, x.dtype), x), array(nbytes // 8))


def on_cpu(fn: Callable[..., Any], *args: Any, kernels: bool = True) -> Callable[[], Any]:
    jitted = m2ml.jit(fn, backend="cpu", kernels=kernels)
    return lambda: jax.block_until_ready(jitted(*args))


def bytes_of(*trees: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(trees))


def memory_bound() -> Iterator[tuple[str, Callable[..., Any], Any, tuple[Any, ...], int]]:
    """Name, step, what it carries from step to step, what stays, and the bytes that one step must move."""
    x, y, w = array(ROWS, WIDTH), array(ROWS, WIDTH, seed=1), array(WIDTH)
    one = x.nbytes
    yield "rms_norm", ops.rms_norm, x, (w,), 2 * one
    yield "layer_norm", ops.layer_norm, x, (w, w), 2 * one
    yield "add_rms_norm", lambda both, w: ops.add_rms_norm(*both, w), (x, y), (w,), 4 * one
    yield "swiglu", ops.swiglu, x, (y,), 3 * one
    heads = x.reshape(1, ROWS, WIDTH // 64, 64)
    yield "rope", ops.rope, heads, (jnp.arange(ROWS)[None], 1e4 ** -jnp.linspace(0, 1, 32)), 2 * one

    def loss(labels: Any, x: Any) -> Any:
        labels, x = jax.lax.optimization_barrier((labels, x))  # or XLA takes it out of the loop
        return jnp.where(ops.softmax_cross_entropy(x, labels) > 1e30, 0, labels)

    yield "softmax_cross_entropy", loss, jnp.arange(ROWS, dtype=jnp.int32) % WIDTH, (x,), one

    def loss_gradient(x: Any, labels: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(ops.softmax_cross_entropy(x, labels)))(x)

    yield "its gradient", loss_gradient, x, (jnp.arange(ROWS, dtype=jnp.int32) % WIDTH,), 3 * one

    def adamw(carry: Any, params: Any) -> Any:
        return ops.adamw_update(*carry, params, np.int32(3), np.float32(1e-3))

    leaves = [array(1 << 20, seed=i) for i in range(8)]
    yield (
        "adamw_update",
        adamw,
        (leaves, leaves, [jnp.square(leaf) for leaf in leaves]),
        (leaves,),
        7 * bytes_of(leaves),
    )


def memory() -> list[Ratio]:
    found = []
    for name, step, carry, constants, moved in memory_bound():
        ours, plain = repeated(step, carry, *constants), repeated(step, carry, *constants, kernels=False)
        found.append(compare(name, ours, copying(moved), peer_name="threaded copy", limit=1 / 0.7))
        found.append(compare(name, ours, plain, peer_name="XLA, definition", limit=1.0))
    return found


def small() -> list[Ratio]:
    """Sizes at which a call costs more than the work."""
    found = []
    for rows in (1, 16, 256):
        x, w = array(rows, WIDTH), array(WIDTH)
        for name, fn, args in (
            ("rms_norm", lambda x, w: ops.rms_norm(x, w), (x, w)),
            ("layer_norm", lambda x, w: ops.layer_norm(x, w, w), (x, w)),
            ("swiglu", lambda x, y: ops.swiglu(x, y), (x, x)),
        ):
            what, plain = f"{name}, {rows} rows", on_cpu(fn, *args, kernels=False)
            found.append(compare(what, on_cpu(fn, *args), plain, peer_name="XLA, definition", limit=1.0, calls=100))
    return found


def torch_attention(q: Any, k: Any, v: Any, gradient: Any) -> Callable[[], Any]:
    import torch

    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_(gradient is not None) for x in (q, k, v))
    given = None if gradient is None else torch.tensor(np.asarray(gradient)).transpose(1, 2)

    def run() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if given is not None:
            torch.autograd.grad(out, (q, k, v), given)

    return run


def causal(q: Any, k: Any, v: Any) -> Any:
    return ops.attention(q, k, v, causal=True)


def causal_gradient(q: Any, k: Any, v: Any, g: Any) -> Any:
    return jax.vjp(causal, q, k, v)[1](g)


def attention() -> list[Ratio]:
    found = []
    for t, d in ((512, 64), (2048, 64), (4096, 64), (512, 128), (2048, 128), (4096, 128)):
        q, k, v, g = (array(1, t, 8, d, seed=i) for i in range(4))
        side = round((2 * 8 * t * t * d / 2) ** (1 / 3))
        square = array(side, side)
        product = on_cpu(lambda a: a @ a, square)
        what = f"attention {t} x {d}"
        found.append(
            compare(what, on_cpu(causal, q, k, v), product, peer_name="matmul of equal flops", limit=1 / 0.8, pairs=7)
        )
        try:
            forward, backward = torch_attention(q, k, v, None), torch_attention(q, k, v, g)
        except ImportError:
            continue
        found.append(compare(what, on_cpu(causal, q, k, v), forward, peer_name="PyTorch", limit=1 / 1.5, pairs=7))
        found.append(
            compare(
                f"{what}, gradient",
                on_cpu(causal_gradient, q, k, v, g),
                backward,
                peer_name="PyTorch",
                limit=1 / 1.5,
                pairs=7,
            )
        )
    return found


def decode(x: Any, w: Any) -> Any:
    return ops.quantized_matmul(x, w)[:, : x.shape[-1]]


def quantized() -> list[Ratio]:
    found = []
    for group in (32, 64):
        w = quantize(array(8192, 4096), bits=4, group_size=group)
        one, many, full = array(1, 4096), array(512, 4096), array(4096, 8192)
        ours, copy = repeated(decode, one, w), copying(bytes_of(w, one))
        found.append(compare(f"1 row, group {group}", ours, copy, peer_name="threaded copy", limit=1 / 0.8))
        ours, peer = on_cpu(ops.quantized_matmul, many, w), on_cpu(jnp.matmul, many, full)
        found.append(compare(f"512 rows, group {group}", ours, peer, peer_name="XLA, float32", limit=1 / 0.6, pairs=7))
    return found


TABLES = {"memory": memory, "small": small, "attention": attention, "quantized": quantized}


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        show(f"cpu kernels: {name}", TABLES[name]())


if __name__ == "__main__":
    main()
