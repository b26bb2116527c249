"""What a comparison costs: the time of a bound against a plain reference run, and memory against its estimate.

The bound is `measured_bounds` (1 + RUNS runs of the reference, their error scales and spreads); the peer is the
reference running the same program once. Memory is the highest resident size of a fresh process that compares on cpu,
beyond what it held with the arguments made, against what `compare` says it needs before it starts.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # both sides multiply alike; other programs stay out of the ratio

from harness import compare, show
from rich.console import Console
from rich.table import Table

#: A bound may take this many plain runs.
LIMIT = 12.0

#: Sizes of GPT train steps: the configuration's, and the batch.
GPTS: dict[str, tuple[dict[str, int], int]] = {
    "GPT step, 0.1 M": ({"vocab_size": 65, "context": 64, "layers": 2, "heads": 4, "embed_dim": 64}, 8),
    "GPT step, 3 M": ({"vocab_size": 512, "context": 128, "layers": 4, "heads": 4, "embed_dim": 256}, 4),
    "GPT step, 11 M": ({"vocab_size": 1024, "context": 256, "layers": 6, "heads": 6, "embed_dim": 384}, 2),
    "GPT step, 98 M": ({"vocab_size": 16384, "context": 512, "layers": 12, "heads": 12, "embed_dim": 768}, 4),
}
CNN_STEP = "CNN step, 0.03 M"
BOUNDS_OF = ("GPT step, 0.1 M", "GPT step, 3 M", CNN_STEP)
MEASURED = ("GPT step, 3 M", "GPT step, 11 M", CNN_STEP)
ESTIMATED = "GPT step, 98 M"


def program_of(name: str) -> Any:
    """A train step with AdamW, traced without making any array."""
    import jax
    import numpy as np
    import optax

    import m2ml
    from m2ml.models import CNN, GPT, CNNConfig, GPTConfig, functional

    if name in GPTS:
        sizes, batch = GPTS[name]
        model = functional(GPT, GPTConfig(**sizes))
        x = y = jax.ShapeDtypeStruct((batch, sizes["context"]), np.int32)
    else:
        model = functional(CNN, CNNConfig())
        x, y = jax.ShapeDtypeStruct((32, 28, 28, 1), np.float32), jax.ShapeDtypeStruct((32,), np.int32)
    tx = optax.adamw(1e-3)

    def step(params: Any, moments: Any, x: Any, y: Any) -> Any:
        def loss_of(params: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    params = model.shapes()
    return m2ml.jit(step).program(params, jax.eval_shape(tx.init, params), x, y)


def arguments(program: Any) -> list[Any]:
    """Arrays of the program's inputs: small positive numbers, tokens and labels below 10."""
    import numpy as np

    generator = np.random.default_rng(0)
    return [
        np.asarray(
            0.02 * np.abs(generator.normal(size=a.shape))
            if a.dtype.kind == "f"
            else generator.integers(0, 10, a.shape),
            a.dtype,
        )
        for a in program.jaxpr.in_avals
    ]


def cost_of_bounds() -> None:
    from m2ml.equivalence import measured_bounds
    from m2ml.plugins import registry

    rows, reference = [], registry.get("reference")
    for name in BOUNDS_OF:
        program = program_of(name)
        host, run = arguments(program), reference.compile(program)
        rows.append(
            compare(
                f"bound of {name}",
                lambda program=program, host=host: measured_bounds(program, host),
                lambda run=run, host=host: run(*host),
                peer_name="one reference run",
                limit=LIMIT,
                pairs=5,
                warmup=1,
            )
        )
    show("Cost of a bound, in plain runs of the reference", rows)


def peak(name: str) -> int:
    """Bytes by which comparing on cpu raises the highest resident size of a fresh process."""
    command = [sys.executable, __file__, "--peak", name]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak(name: str) -> None:
    import psutil

    from m2ml.equivalence import measured_bounds
    from m2ml.equivalence.measure import judge_all, run_program

    small = program_of(CNN_STEP)  # engines and libraries are loaded before the count begins
    run_program("cpu", small, arguments(small))
    program = program_of(name)
    host = arguments(program)
    before = psutil.Process().memory_info().rss
    results = {"cpu": run_program("cpu", program, host)}
    judge_all(program, results, measured_bounds(program, host))
    scale = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale - before)


def memory() -> None:
    from m2ml.equivalence.memory import needed

    table = Table(title="Memory of a comparison on cpu, beside its arguments")
    for column in ("what", "said before it starts", "measured peak", "said / measured"):
        table.add_column(column)
    for name in MEASURED:
        said, took = needed(program_of(name), 1).bytes, peak(name)
        table.add_row(name, f"{said / 1e9:.2f} GB", f"{took / 1e9:.2f} GB", f"{said / took:.2f}")
    table.add_row(ESTIMATED, f"{needed(program_of(ESTIMATED), 1).bytes / 1e9:.1f} GB", "not run", "")
    Console(width=100).print(table)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        return print_peak(sys.argv[2])
    memory()  # first: Linux counts what a process held when it started another as the other's
    return cost_of_bounds()


if __name__ == "__main__":
    main()
