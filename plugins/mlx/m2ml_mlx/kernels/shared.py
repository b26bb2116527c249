"""What the launches of Metal and of CUDA bodies share: how arrays are handed over and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from m2ml_mlx.kernels.source import MOST_ELEMENTS, Source, each, each_row, worthwhile

Function = Callable[..., Any]


def rows_of(x: Any) -> Any:
    """``[*b, n]`` as ``[rows, n]``."""
    return x.reshape(-1, x.shape[-1])


def one_dtype(x: Any, *others: Any, **static: Any) -> str:
    if any(other.dtype != x.dtype for other in others):
        return "its two arrays have different dtypes"
    return worthwhile(x)


def leading_dtype(x: Any, residual: Any, weight: Any = None, **static: Any) -> str:
    return one_dtype(x, residual)


def swiglu(source: Source, per_thread: int) -> Function:
    def run(gate: Any, up: Any) -> Any:
        threads = each(gate.size, per_thread)
        return source(gate, up, gate.size, out=[(gate.shape, gate.dtype)], threads=threads, T=gate.dtype)[0]

    return run


def add_rms_norm(source: Source) -> Function:
    def run(x: Any, residual: Any, weight: Any = None, *, eps: float) -> Any:
        flat, out, scale = rows_of(x), (x.shape, x.dtype), x if weight is None else weight
        types = {"T": x.dtype, "W": scale.dtype, "WEIGHTED": weight is not None}
        given = flat, rows_of(residual), scale.reshape(-1), float(eps)
        return tuple(source(*given, out=[out, out], threads=each_row(*flat.shape), **types))

    return run


def adamw_update(source: Source, per_thread: int) -> Function:
    def run(gradients: Any, mu: Any, nu: Any, params: Any, count: Any, learning_rate: Any, **static: Any) -> Any:
        import mlx.core as mx

        leaves, tree = jax.tree.flatten(params)
        decayed = static["decayed"] or (True,) * len(leaves)
        b1, b2, steps = static["b1"], static["b2"], count.astype(mx.float32) + 1
        scalars = mx.stack([1 - b1**steps, 1 - b2**steps, learning_rate.astype(mx.float32)])
        columns = zip(*(jax.tree.leaves(part) for part in (gradients, mu, nu)), leaves, decayed, strict=True)
        found = []
        for g, m, v, p, decays in columns:
            decay = static["weight_decay"] if decays else 0.0
            numbers = mx.array([b1, 1 - b1, b2, 1 - b2, static["eps"], static["eps_root"], decay], mx.float32)
            types = {"G": g.dtype, "M": m.dtype, "V": v.dtype, "P": p.dtype, "APPLY": static["apply"]}
            out = [(p.shape, p.dtype), (p.shape, m.dtype), (p.shape, v.dtype)]
            flat = [x.reshape(-1) for x in (g, m, v, p)]
            found.append(source(*flat, scalars, numbers, p.size, out=out, threads=each(p.size, per_thread), **types))
        return tuple(jax.tree.unflatten(tree, [leaf[i] for leaf in found]) for i in range(3))

    return run


def some_leaves(gradients: Any, mu: Any, nu: Any, params: Any, *rest: Any, **static: Any) -> str:
    sizes = [x.size for x in jax.tree.leaves(params)]
    if not sizes or not min(sizes):
        return "there are no leaves, or one is empty"
    return "a leaf has more elements than it counts" if max(sizes) >= MOST_ELEMENTS else ""
