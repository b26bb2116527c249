"""Loss and gradients of 4096 tokens x 576 x 49152: `linear_cross_entropy` against the loss of whole logits by Optax.

Each side runs in a process of its own, the two in turn, and says its times and its memory: the largest resident set,
how much of it came after Python, JAX and the arguments were there, and what XLA says it allocates, beside arguments
and results and with them. A whole process cannot shrink to a fifth: Python and JAX are 0.2 GB of either side, arguments
and results 0.24 GB.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from harness import Ratio, show

TOKENS, WIDTH, VOCABULARY = 4096, 576, 49152
CALLS, ROUNDS = 2, 3
SIDES = ("m2ml", "optax")


def measure(side: str) -> dict[str, Any]:
    """Times of calls after the first and memory in MB, in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((TOKENS, WIDTH), dtype=np.float32))
    scratch = rng.standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
    scratch *= np.float32(0.04)  # in place: what makes the arguments should not be the peak
    weight = jnp.asarray(scratch)
    del scratch
    labels = jnp.asarray(rng.integers(0, VOCABULARY, TOKENS).astype(np.int32))
    call = jax.jit(jax.value_and_grad(loss_of(side), (0, 1))).lower(hidden, weight, labels).compile()
    begin, times, processor = resident(), [], []
    for _ in range(1 + CALLS):
        start, used = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call(hidden, weight, labels))
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        loss = float(result[0])
        del result
    said = call.memory_analysis()
    temporary = said.temp_size_in_bytes / 1e6
    arrays = (said.argument_size_in_bytes + said.output_size_in_bytes) / 1e6 + temporary
    return {
        "times": times[1:],
        "processor": processor[1:],
        "loss": loss,
        "whole process": resident(),
        "beyond arguments": resident() - begin,
        "XLA's temporaries": temporary,
        "with arguments and results": arrays,
    }


def resident() -> float:
    """The largest resident set of this process so far in MB (Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1024e-6)


def loss_of(side: str) -> Any:
    import optax

    from m2ml.ops import linear_cross_entropy

    def whole(hidden: Any, weight: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ weight.T, labels).mean()

    return linear_cross_entropy if side == "m2ml" else whole


def in_its_own_process(side: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, side], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratio(what: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> Ratio:
    """Calls of one round in pairs. Processor time is that of all threads: a busy machine changes it less."""
    pairs = [pair for mine, known in zip(ours, theirs, strict=True) for pair in zip(mine[key], known[key], strict=True)]
    ratios, quarter = sorted(a / b for a, b in pairs), len(pairs) // 4
    middle = [statistics.median(times) for times in zip(*pairs, strict=True)]
    return Ratio(
        what, "optax on whole logits", *middle, statistics.median(ratios), 1.1, ratios[quarter], ratios[-1 - quarter]
    )


def compare() -> None:
    from rich.console import Console
    from rich.table import Table

    rounds = [{side: in_its_own_process(side) for side in (SIDES if i % 2 else SIDES[::-1])} for i in range(ROUNDS)]
    ours, theirs = ([r[side] for r in rounds] for side in SIDES)
    rows = [ratio(what, ours, theirs, key) for what, key in (("time", "times"), ("processor time", "processor"))]
    show(f"{TOKENS} tokens x {WIDTH} x {VOCABULARY} (losses {ours[0]['loss']:.6f}, {theirs[0]['loss']:.6f})", rows)
    table = Table(title="Peak memory")
    for column in ("what", "m2ml MB", "optax MB", "ratio", "limit", ""):
        table.add_column(column)
    limit = 0.2
    for what in ("XLA's temporaries", "with arguments and results", "beyond arguments", "whole process"):
        mine, known = (max(found[what] for found in side) for side in (ours, theirs))
        verdict = "reached" if mine / known <= limit else "MISSED"
        table.add_row(what, f"{mine:.0f}", f"{known:.0f}", f"{mine / known:.2f}", f"{limit:g}", verdict)
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
    else:
        compare()
