"""A GPT train step: m2ml on mlx against the same model written by hand in mlx.nn; m2ml on cpu against plain jax.jit.

Four layers, width 256, 4 x 128 tokens, vocabulary 512, AdamW, float32. The peer on mlx is idiomatic: `mx.compile` of
the whole step over model and optimizer state, fused layer norm, attention and cross-entropy from `mx.fast`. Both
sides donate or overwrite their state. Times are of whole steps, loss read each time.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Any

from harness import Ratio, compare, show, with_openblas
from rich.console import Console

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, VOCABULARY = 4, 4, 256, 128, 4, 512


def data() -> tuple[Any, Any]:
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, CONTEXT + 1)).astype(np.int32)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def flax_step() -> tuple[Any, Any]:
    """The train step as a pure function ``step(state, x, y) -> (state, loss)``, and its initial state."""
    import jax
    import optax

    from m2ml.models import GPT, GPTConfig, functional

    config = GPTConfig(vocab_size=VOCABULARY, context=CONTEXT, layers=LAYERS, heads=HEADS, embed_dim=WIDTH)
    model, tx = functional(GPT, config), optax.adamw(1e-3)
    params = jax.jit(model.init)(jax.random.key(0))

    def step(state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        params, moments = state

        def loss_of(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return step, (params, tx.init(params))


def mlx_step() -> tuple[Any, Any, Any]:
    """The same step by hand: ``step(x, y) -> loss`` compiled, the state it updates, and it uncompiled."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def __call__(self, x: Any) -> Any:
            batch, length, _ = x.shape
            q, k, v = (t.reshape(batch, length, HEADS, -1).swapaxes(1, 2) for t in mx.split(self.qkv(x), 3, -1))
            scale = (WIDTH // HEADS) ** -0.5
            mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
            return self.out(mixed.swapaxes(1, 2).reshape(batch, length, -1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attention = Attention()
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def __call__(self, x: Any) -> Any:
            x = x + self.attention(self.attention_norm(x))
            return x + self.down(nn.gelu_approx(self.up(self.mlp_norm(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks, self.norm = [Block() for _ in range(LAYERS)], nn.LayerNorm(WIDTH)

        def __call__(self, x: Any) -> Any:
            hidden = self.tokens(x) + self.positions(mx.arange(x.shape[1]))
            for block in self.blocks:
                hidden = block(hidden)
            return self.tokens.as_linear(self.norm(hidden))

    model, optimizer = Model(), optim.AdamW(1e-3, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    value_and_grad = nn.value_and_grad(model, lambda m, x, y: nn.losses.cross_entropy(m(x), y, reduction="mean"))

    def step(x: Any, y: Any) -> Any:
        loss, grads = value_and_grad(model, x, y)
        optimizer.update(model, grads)
        return loss

    state = [model.state, optimizer.state]
    mx.eval(state)
    return mx.compile(step, inputs=state, outputs=state), state, step


#: MLX primitives that only look at memory in another way.
VIEWS = frozenset({"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unflatten"})


def primitives(outputs: Any) -> str:
    """How many primitives the graph of lazy arrays has, and how many of them compute something."""
    import jax
    import mlx.core as mx

    text = io.StringIO()
    mx.export_to_dot(text, *jax.tree.leaves(outputs))
    names = re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue())
    return f"{len(names)} ({sum(name not in VIEWS for name in names)} of them not views)"


def graphs() -> str:
    """The size of both graphs as they are built, before `mx.compile` fuses anything."""
    import mlx.core as mx

    import m2ml

    m2ml.backends()["mlx"].compiled = False  # type: ignore[attr-defined]
    x, y = map(mx.array, data())
    step, start = flax_step()
    ours = m2ml.jit(step, backend="mlx", donate_argnames="state")(m2ml.put(start, "mlx"), x, y)
    _, state, by_hand = mlx_step()
    loss = by_hand(x, y)
    return f"MLX primitives in the graph: m2ml {primitives(ours)}, by hand {primitives([loss, state])}"


def on_mlx(compiled: bool) -> tuple[Ratio, list[str]]:
    import jax
    import mlx.core as mx

    import m2ml

    m2ml.backends()["mlx"].compiled = compiled  # type: ignore[attr-defined]
    x, y = map(mx.array, data())
    by_hand, hand_state, _ = mlx_step()
    step, start = flax_step()
    train = m2ml.jit(step, backend="mlx", donate_argnames="state")
    state = m2ml.put(start, "mlx")
    del start

    def ours() -> None:
        nonlocal state
        state, loss = train(state, x, y)
        mx.eval(loss, jax.tree.leaves(state))

    def peer() -> None:
        mx.eval(by_hand(x, y), hand_state)

    how = "mx.compile" if compiled else "no mx.compile"
    ratio = compare(f"mlx step, {how}", ours, peer, peer_name="mlx.nn, mx.compile", limit=1.05, pairs=11)
    peaks = [_peak(ours), _peak(peer)]
    said = f"peak memory above the state with {how}: m2ml {peaks[0]:.1f} MB, by hand {peaks[1]:.1f} MB"
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    whole = [peak + own for peak in peaks]
    return ratio, [said, f"with each side's own state of {own:.0f} MB: ratio {whole[0] / whole[1]:.2f} (limit 1.1)"]


def _peak(step: Any) -> float:
    """Megabytes that a step needs beyond what is alive between steps."""
    import mlx.core as mx

    step()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step()
    return (mx.get_peak_memory() - before) / 1e6


def on_cpu() -> Ratio:
    import jax

    import m2ml

    x, y = data()
    step, start = flax_step()
    plain, ours_fn = jax.jit(step, donate_argnums=0), m2ml.jit(step, backend="cpu", donate_argnames="state")
    states = [jax.tree.map(jax.numpy.copy, start) for _ in range(2)]

    def ours() -> None:
        states[0], loss = ours_fn(states[0], x, y)
        jax.block_until_ready((states[0], loss))

    def peer() -> None:
        states[1], loss = plain(states[1], x, y)
        jax.block_until_ready((states[1], loss))

    return compare("cpu step", ours, peer, peer_name="jax.jit", limit=1.02, pairs=21)


if __name__ == "__main__":
    os.environ.pop("MLX_DISABLE_COMPILE", None)
    blas = with_openblas()
    if "cpu" in sys.argv[1:]:
        show("GPT train step", [on_cpu()])
        raise SystemExit
    rows, notes = [on_cpu()], []
    for compiled in (False, True):
        row, said = on_mlx(compiled)
        rows.append(row)
        notes += said
    show(f"GPT train step ({blas})", rows)
    Console().print("\n".join([*notes, graphs()]))
