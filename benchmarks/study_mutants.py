"""What share of wrong rules do the generated cases catch? Plants every fault in a copy of a backend's table.

    python benchmarks/study_mutants.py --backend mlx [--examples 30] [--seed 0] [--json FILE] [PRIMITIVE ...]

The exit code is 1 where less than 99% of the mutants that can be told from the right rule are caught.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import hypothesis
import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

from m2ml.equivalence.mutants import Verdict, verdicts
from m2ml.equivalence.primitives.cases import EXAMPLES, load
from m2ml.plugins import registry

#: The share of mutants that must be caught.
AIM = 0.99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("primitives", nargs="*", help="those of every rule of the backend if not given")
    parser.add_argument("--backend", default="mlx")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every verdict to this file")
    options = parser.parse_args()
    hypothesis.settings.register_profile(
        "study", deadline=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=False
    )
    hypothesis.settings.load_profile("study")
    backend = registry.get(options.backend)
    names = options.primitives or sorted(set(load()) & set(backend.rules))
    found: list[Verdict] = []
    for name in track(names, "planting faults"):
        found += verdicts(backend, name, seed=options.seed, count=options.examples)
        jax.clear_caches()
    if options.json:
        rows = [{"primitive": v.primitive, "kind": v.fault.kind, "fault": v.fault.label, "fate": v.fate} for v in found]
        options.json.write_text(json.dumps(rows, indent=1))
    return show(found, options.backend, options.examples)


def show(found: list[Verdict], backend: str, examples: int) -> int:
    """Print the table by kind of fault, and the survivors."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in found:
        by_kind[verdict.fault.kind][verdict.fate] += 1
    table = Table(title=f"Wrong rules in the table of {backend}, {examples} examples per primitive")
    for column in ("kind of fault", "mutants", "caught", "survived", "equivalent"):
        table.add_column(column, justify="left" if column == "kind of fault" else "right")
    for kind, fates in sorted(by_kind.items()):
        table.add_row(kind, *(str(n) for n in (fates.total(), fates["caught"], fates["survived"], fates["equivalent"])))
    console = Console(width=140)
    console.print(table)
    for verdict in found:
        if verdict.fate == "survived":
            met = f"met in {verdict.differing} equations" if verdict.differing else "not met"
            console.print(f"survived, {met}: {verdict.name}", highlight=False)
    caught = sum(v.fate == "caught" for v in found)
    wrong = sum(v.fate != "equivalent" for v in found)
    if not wrong:
        console.print("no mutant can be told from the right rule")
        return 1
    low, high = binomtest(caught, wrong).proportion_ci(method="exact")
    console.print(f"caught {caught} of {wrong}: {caught / wrong:.2%} (95% between {low:.2%} and {high:.2%})")
    return int(caught < AIM * wrong)


if __name__ == "__main__":
    sys.exit(main())
