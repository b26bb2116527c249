"""A GPT train step on cpu with m2ml's ops, against plain JAX and against PyTorch, eager and compiled.

17 million parameters: 6 layers of width 384, 6 heads, vocabulary 8192, 4 x 256 tokens, AdamW, float32. Needs PyTorch.
Each peer's peak memory is that of a process of its own (``--peak NAME``), Python and libraries included. Arguments
choose: time, memory, and with ``small-pages`` a C library as it is, not one that takes huge pages for every peer.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import compare, show, with_huge_pages
from rich.console import Console

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, VOCABULARY = 6, 6, 384, 256, 4, 8192


def data() -> tuple[Any, Any]:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, CONTEXT + 1)).astype(np.int32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def m2ml_step(*, kernels: bool) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp
    import optax

    import m2ml
    from m2ml import ops
    from m2ml.models import GPT, GPTConfig, functional

    config = GPTConfig(vocab_size=VOCABULARY, context=CONTEXT, layers=LAYERS, heads=HEADS, embed_dim=WIDTH)
    model = functional(GPT, config)
    tx = optax.adamw(1e-3)
    params = jax.jit(model.init)(jax.random.key(0))
    x, y = data()

    def step(state: Any) -> tuple[Any, Any]:
        params, moments = state

        def loss_of(params: Any) -> Any:
            logits = model.apply(params, x)
            if kernels:
                return jnp.mean(ops.softmax_cross_entropy(logits, jnp.asarray(y)))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        if kernels:
            mu, nu, count = moments
            params, mu, nu = ops.adamw_update(grads, mu, nu, params, count, np.float32(1e-3), apply=True)
            return (params, (mu, nu, count + 1)), loss
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    jitted = m2ml.jit(step, backend="cpu", donate_argnames=("state",), kernels=kernels)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = [(params, (zeros, jax.tree.map(jnp.copy, zeros), jnp.int32(0)) if kernels else tx.init(params))]

    def run() -> float:
        state[0], loss = jitted(state[0])
        return float(loss)

    return run


def torch_step(*, compiled: bool) -> Callable[[], float]:
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            heads = self.qkv(self.norm1(x)).view(BATCH, CONTEXT, 3, HEADS, WIDTH // HEADS)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(BATCH, CONTEXT, WIDTH))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)

        def forward(self, x: Any, y: Any) -> Any:
            h = self.tokens(x) + self.positions.weight
            for block in self.blocks:
                h = block(h)
            logits = self.norm(h) @ self.tokens.weight.T
            return functional.cross_entropy(logits.view(-1, VOCABULARY), y.view(-1))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    x, y = (torch.tensor(a, dtype=torch.long) for a in data())
    forward = torch.compile(model) if compiled else model

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


STEPS: dict[str, Callable[[], Callable[[], float]]] = {
    "m2ml, ops": lambda: m2ml_step(kernels=True),
    "plain JAX": lambda: m2ml_step(kernels=False),
    "PyTorch": lambda: torch_step(compiled=False),
    "torch.compile": lambda: torch_step(compiled=True),
}


def peak(name: str) -> float:
    """Peak resident memory of a process that takes three steps, in MB."""
    done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1e3


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        run = STEPS[sys.argv[2]]()
        for _ in range(3):
            run()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    try:
        import torch
    except ImportError:
        Console().print("bench_gpt_torch.py compares with PyTorch, which is not installed")
        return
    if "small-pages" not in sys.argv:
        with_huge_pages()
    title = f"GPT train step on cpu, PyTorch {torch.__version__}"
    chosen = [a for a in sys.argv[1:] if a in ("time", "memory")] or ["time", "memory"]
    if "time" in chosen:
        ours = STEPS["m2ml, ops"]()
        peers = [name for name in STEPS if name != "m2ml, ops"]
        show(title, [compare("time", ours, STEPS[n](), peer_name=n, limit=1.0, pairs=7, warmup=1) for n in peers])
    if "memory" in chosen:
        for name in STEPS:
            Console().print(f"{name}: peak memory {peak(name):,.0f} MB")


if __name__ == "__main__":
    main()
