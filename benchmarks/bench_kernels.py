"""The C++ kernels of the cpu backend: against memory bandwidth, against XLA's code for the definition, and PyTorch.

Memory bandwidth is what a threaded copy of as many bytes reaches in the same run: a ratio of 1.43 is 70% of it, one of
1.25 is 80%. PyTorch rows appear where PyTorch is installed. Arguments choose tables (see `TABLES`), and with ``-NAME``
the ops of them; ``processor`` takes processor time for wall time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Ratio, compare, show, with_huge_pages
from m2ml_cpu.ffi import handler

import m2ml
from m2ml import ops
from m2ml.ops.quantize import Quantized

HERE = Path(__file__).parent
Function = Callable[[], Any]

WIDTH = 1024
#: Rows, and how many calls follow each other in one program: the last size is beyond the cache.
SIZES = ((1, 256), (16, 128), (256, 32), (2048, 16), (16384, 8))


def array(*shape: int, seed: int = 0, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def chained(step: Callable[..., Any], carry: Any, *constants: Any, loops: int, kernels: bool = True) -> Function:
    """``loops`` steps in one program, each on what the one before gave: XLA may write where it read, but cannot fuse
    one step with the next."""
    passing = handler(HERE / "pass.cc")

    def chain(carry: Any, *constants: Any) -> Any:
        for _ in range(loops - 1):
            leaves, tree = jax.tree.flatten(step(carry, *constants))
            types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
            carry = jax.tree.unflatten(tree, passing(types, *leaves, aliases={i: i for i in range(len(leaves))}))
        return step(carry, *constants)

    return on_cpu(chain, carry, *constants, kernels=kernels)


def copying(nbytes: int, loops: int) -> Function:
    """A threaded copy that moves ``nbytes`` in all, ``loops`` times."""
    call = handler(HERE / "copy.cc")

    def chain(x: Any) -> Any:
        for _ in range(loops):
            x = call(jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return x

    return on_cpu(chain, array(nbytes // 8))


def on_cpu(fn: Callable[..., Any], *args: Any, kernels: bool = True) -> Function:
    jitted = m2ml.jit(fn, backend="cpu", kernels=kernels)
    return lambda: jax.block_until_ready(jitted(*args))


def bytes_of(*trees: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(trees))


@dataclass(frozen=True)
class Case:
    """One step of a chain: what it carries on, what stays, and how many arrays like the first it must move."""

    name: str
    step: Callable[..., Any]
    carry: Any
    constants: tuple[Any, ...]
    arrays: float

    @property
    def moved(self) -> int:
        return round(self.arrays * jax.tree.leaves(self.carry)[0].nbytes)


def gradient_of(op: Callable[..., Any]) -> Callable[..., Any]:
    """A step from ``(dy, x, gradients of weights)`` to the same for the next, where ``dy`` takes the place of x."""

    def step(carry: Any, *weights: Any) -> Any:
        dx, *rest = jax.vjp(op, carry[1], *weights)[1](carry[0])
        return dx, carry[0], *rest

    return step


def gradient_of_gate(op: Callable[..., Any]) -> Callable[..., Any]:
    """A step from ``(dy, gate, up)`` to ``(dgate, dup, dy)``, the same for the next."""
    return lambda carry: (*jax.vjp(op, *carry[1:])[1](carry[0]), carry[0])


def memory_bound(rows: int, dtype: str) -> Iterator[Case]:
    x, y, w = (array(*shape, seed=i, dtype=dtype) for i, shape in enumerate(((rows, WIDTH), (rows, WIDTH), (WIDTH,))))

    def beside(op: Callable[..., Any]) -> Callable[..., Any]:
        """Its input lives on, as a residual does."""
        return lambda carry, *args: (op(carry[0], *args), carry[0])

    yield Case("rms_norm", beside(ops.rms_norm), (x, y), (w,), 2)
    yield Case("rms_norm, gradient", gradient_of(ops.rms_norm), (y, x, w), (w,), 3)
    yield Case("layer_norm", beside(ops.layer_norm), (x, y), (w, w), 2)
    yield Case("layer_norm, gradient", gradient_of(ops.layer_norm), (y, x, w, w), (w, w), 3)
    yield Case("add_rms_norm", lambda both, w: ops.add_rms_norm(*both, w), (x, y), (w,), 4)
    yield Case("swiglu", ops.swiglu, x, (y,), 3)
    yield Case("swiglu, gradient", gradient_of_gate(ops.swiglu), (y, x, y), (), 5)
    yield Case("geglu", ops.geglu, x, (y,), 3)
    yield Case("geglu, gradient", gradient_of_gate(ops.geglu), (y, x, y), (), 5)
    heads = x.reshape(1, rows, WIDTH // 64, 64)
    yield Case("rope", ops.rope, heads, (jnp.arange(rows)[None], 1e4 ** -jnp.linspace(0, 1, 32)), 2)
    labels = jnp.arange(rows, dtype=jnp.int32) % WIDTH

    def labels_again(carry: Any) -> Any:
        """The same labels, by way of the losses, and the logits: were they constants, XLA would sum them up once."""
        labels, logits = carry
        return jnp.where(jnp.isnan(ops.softmax_cross_entropy(logits, labels)), 0, labels), logits

    yield Case("softmax_cross_entropy", labels_again, (labels, x), (), x.nbytes / labels.nbytes)
    of_loss = jnp.ones(rows)
    yield Case(
        "softmax_cross_entropy, gradient",
        lambda x, y, g: jax.vjp(lambda x: ops.softmax_cross_entropy(x, y), x)[1](g)[0],
        x,
        (labels, of_loss),
        3,
    )
    v = jnp.square(w) + 1

    def normed(train: bool) -> Callable[..., Any]:
        """Its statistics are carried on: of constant ones XLA would work out the scale once."""
        return lambda carry, w: ops.batch_norm_act(*carry, w, w, train=train, activation="relu")

    yield Case("batch_norm_act, inference", normed(False), (x, w, v), (w,), 2)
    if rows > 1:
        yield Case("batch_norm_act, training", normed(True), (x, w, v), (w,), 3)
    if dtype == "float32":
        leaves = [array(rows, WIDTH // 4, seed=i) for i in range(4)]
        squares = [jnp.square(leaf) for leaf in leaves]

        def adamw(carry: Any, params: Any) -> Any:
            return ops.adamw_update(*carry, params, np.int32(3), np.float32(1e-3))

        yield Case("adamw_update", adamw, (leaves, leaves, squares), (leaves,), 7 * 4)


def wanted(case: Case) -> bool:
    return not any(a.startswith("-") for a in sys.argv) or any(case.name.startswith(a[1:]) for a in sys.argv[1:])


def against_copy(dtype: str) -> list[Ratio]:
    """As many bytes of either dtype, so that half precision is beyond the cache too."""
    rows, loops = SIZES[-1]
    rows *= 4 // jnp.dtype(dtype).itemsize
    return [
        compare(
            f"{case.name}, {dtype}",
            chained(case.step, case.carry, *case.constants, loops=loops),
            copying(case.moved, loops),
            peer_name="threaded copy",
            limit=1 / 0.7,
            pairs=9,
        )
        for case in memory_bound(rows, dtype)
        if wanted(case)
    ]


def against_xla(dtype: str, sizes: Sequence[tuple[int, int]]) -> list[Ratio]:
    return [
        compare(
            f"{case.name}, {rows} rows, {dtype}",
            *(chained(case.step, case.carry, *case.constants, loops=loops, kernels=own) for own in (True, False)),
            peer_name="XLA, definition",
            limit=1.0,
            pairs=9,
        )
        for rows, loops in sizes
        for case in memory_bound(rows, dtype)
        if wanted(case)
    ]


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


def square_product(flops: float) -> Function:
    side = round((flops / 2) ** (1 / 3))
    return on_cpu(lambda a: a @ a, array(side, side))


def attention() -> list[Ratio]:
    """Against XLA's product of equal flops (a gradient has 2.5 times the forward pass's) and PyTorch."""
    found = []
    for t, d in ((512, 64), (2048, 64), (4096, 64), (512, 128), (2048, 128), (4096, 128)):
        q, k, v, g = (array(1, t, 8, d, seed=i) for i in range(4))
        flops = 2 * 8 * t * t * d
        for what, ours, times, gradient in (
            (f"attention {t} x {d}", on_cpu(causal, q, k, v), 1, None),
            (f"attention {t} x {d}, gradient", on_cpu(causal_gradient, q, k, v, g), 3.5, g),
        ):
            product = square_product(times * flops)
            found.append(compare(what, ours, product, peer_name="matmul of equal flops", limit=1 / 0.8, pairs=7))
            if importlib.util.find_spec("torch"):
                torch = torch_attention(q, k, v, gradient)
                found.append(compare(what, ours, torch, peer_name="PyTorch", limit=1 / 1.5, pairs=7))
    return found


def reading(nbytes: int) -> Function:
    """A threaded sum of ``nbytes``."""
    call = handler(HERE / "reading.cc")
    return on_cpu(lambda x: call(jax.ShapeDtypeStruct((), jnp.float32), x), array(nbytes // 4))


def random_weight(outputs: int, inputs: int, bits: int, group: int) -> Quantized:
    rng = np.random.default_rng(0)
    packed = jnp.asarray(rng.integers(0, 2**32, (outputs, inputs * bits // 32), np.uint32))
    scales = jnp.full((outputs, inputs // group), 0.01, jnp.bfloat16)
    return Quantized(packed, scales, -8 * scales, bits, group)


def quantized() -> list[Ratio]:
    """One row by weights beyond the cache, against reading and copying as many bytes; 512 rows."""
    found = []
    for bits, group in ((4, 32), (4, 64), (2, 64), (3, 64), (5, 64), (6, 64), (8, 64)):
        w = random_weight(32768, 4096, bits, group)
        for dtype in ("float32", "bfloat16") if bits == 4 else ("float32",):
            ours, what = on_cpu(ops.quantized_matmul, array(1, 4096, dtype=dtype), w), f"1 row, {bits} bits of {group}"
            for name, peer in (("read", reading), ("copy", lambda n: copying(n, 1))):
                limit = 1 / 0.8 if bits == 4 else float("inf")
                found.append(
                    compare(f"{what}, {dtype}", ours, peer(bytes_of(w)), peer_name=f"threaded {name}", limit=limit)
                )
    for group in (32, 64):
        w, many, full = random_weight(8192, 4096, 4, group), array(512, 4096), array(4096, 8192)
        ours, product = on_cpu(ops.quantized_matmul, many, w), on_cpu(jnp.matmul, many, full)
        found.append(
            compare(f"512 rows, 4 bits of {group}", ours, product, peer_name="XLA, float32", limit=1 / 0.6, pairs=7)
        )
    return found


def quantized_small() -> list[Ratio]:
    """One row by the weights of a small language model, in one program as a decoder has them."""
    found = []
    for outputs, inputs in ((192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576)):
        w, x = random_weight(outputs, inputs, 4, 64), array(1, inputs)
        loops = 64 if outputs < 2000 else 8

        def step(carry: Any, x: Any, w: Any) -> Any:
            return ops.quantized_matmul(x, w)

        start = array(1, outputs)
        ours, plain = (chained(step, start, x, w, loops=loops, kernels=own) for own in (True, False))
        what = f"1 row, {outputs} x {inputs}"
        found.append(compare(what, ours, plain, peer_name="XLA, definition", limit=1.0, pairs=5))
    return found


TABLES: dict[str, Callable[[], list[Ratio]]] = {
    "memory": lambda: against_copy("float32"),
    "memory-half": lambda: against_copy("bfloat16"),
    "small": lambda: against_xla("float32", SIZES[:2]),
    "small-half": lambda: against_xla("bfloat16", SIZES[:2]),
    "middle": lambda: against_xla("float32", SIZES[2:4]),
    "middle-half": lambda: against_xla("bfloat16", SIZES[2:4]),
    "large": lambda: against_xla("float32", SIZES[4:]),
    "large-half": lambda: against_xla("bfloat16", SIZES[4:]),
    "attention": attention,
    "quantized": quantized,
    "quantized-small": quantized_small,
}


def main() -> None:
    with_huge_pages()
    for name in [a for a in sys.argv[1:] if a in TABLES] or TABLES:
        show(f"cpu kernels: {name}", TABLES[name]())


if __name__ == "__main__":
    main()
