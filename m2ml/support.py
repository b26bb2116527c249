"""The support table: what each registered backend covers, read from the registry."""

from __future__ import annotations

from m2ml.backend import Backend
from m2ml.errors import BackendUnavailable
from m2ml.kernel import kernels
from m2ml.op import ops
from m2ml.plugins import registry


def _coverage(backend: Backend) -> tuple[str, str]:
    rules = getattr(backend, "rules", None)
    primitives = f"{len(rules)} rules" if rules else "all that XLA lowers"
    reasons: dict[str, list[str]] = {}
    for gap in backend.gaps:
        what = [f"`{name}`" for name in (gap.primitive, gap.dtype) if name != "*"]
        where = ["in some cases"] if gap.case != "*" else []
        reasons.setdefault(gap.reason, []).append(" ".join(what + where))
    gaps = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return primitives, gaps or "none"


def support_table() -> str:
    """A Markdown table with a row per registered backend: its engine, its primitives, its declared gaps."""
    rows = ["| backend | engine | primitives | declared gaps |", "|---|---|---|---|"]
    for name in sorted(registry.names()):
        try:
            primitives, gaps = _coverage(registry.get(name))
        except BackendUnavailable:
            primitives, gaps = "all that its provider lowers", "does not run on the machine that made this table"
        rows.append(f"| `{name}` | {registry.about(name)} | {primitives} | {gaps} |")
    return "\n".join(rows)


def ops_table() -> str:
    """A Markdown table with a row per op: what it is, and the kernels that may run it, per backend."""
    registry.discover()
    columns = [name for name in sorted(registry.names()) if any(k.backend == name for k in kernels.all())]
    rows = [f"| op | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for op in sorted(ops):
        cells = []
        for backend in columns:
            names = [k.name for k in kernels.of(op, backend)]
            backward = [k.name for k in kernels.of(f"{op}_backward", backend)]
            cells.append(", ".join(names) + (f"; backward: {', '.join(backward)}" if backward else "") or "definition")
        rows.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join(rows)
