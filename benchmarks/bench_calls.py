"""What a cached call costs on the host, and what importing m2ml costs.

One leaf and 300 leaves, each `x + 1` on four numbers, so that nearly all of the time is the call. On mlx both sides
are compiled by `mx.compile` and evaluated: a call of m2ml dispatches its work before it returns, a call of the peer
does not, so the fair unit is call plus evaluation.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from harness import Ratio, compare, show, with_openblas


def calls() -> list[Ratio]:
    import jax
    import jax.numpy as jnp
    import mlx.core as mx

    import m2ml

    rows = []
    for count, repeat in ((1, 2000), (300, 20)):
        tree = {i: jnp.ones(4) for i in range(count)}
        fn = lambda tree: {k: v + 1 for k, v in tree.items()}  # noqa: E731
        plain, ours = jax.jit(fn), m2ml.jit(fn, backend="cpu")
        what = f"{count} lea{'f' if count == 1 else 'ves'}"
        rows.append(
            compare(
                f"cpu, {what}",
                lambda tree=tree, ours=ours: ours(tree),
                lambda tree=tree, plain=plain: plain(tree),
                peer_name="jax.jit",
                limit=1.2,
                calls=repeat,
            )
        )
        native = m2ml.put(tree, "mlx")
        compiled, on_mlx = mx.compile(fn), m2ml.jit(fn, backend="mlx")
        rows.append(
            compare(
                f"mlx, {what}, call and evaluation",
                lambda native=native, on_mlx=on_mlx: mx.eval(on_mlx(native)),
                lambda native=native, compiled=compiled: mx.eval(compiled(native)),
                peer_name="mx.compile",
                limit=1.5,
                calls=repeat,
            )
        )
    return rows


def imports(runs: int = 9) -> Ratio:
    times: dict[str, list[float]] = {"m2ml": [], "jax": []}
    for _ in range(runs + 1):
        for module, seconds in times.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            seconds.append(time.perf_counter() - begin)
    ratios = sorted(a / b for a, b in zip(times["m2ml"][1:], times["jax"][1:], strict=True))
    middle = statistics.median(times["m2ml"][1:]), statistics.median(times["jax"][1:])
    return Ratio("import m2ml", "import jax", *middle, statistics.median(ratios), 1.15, ratios[2], ratios[-3])


if __name__ == "__main__":
    os.environ["M2ML_MLX_COMPILE"] = "1"
    blas = with_openblas()
    show(f"Host cost ({blas})", [*calls(), imports()])
