"""A picture of where the differences of a comparison sit, in units of the bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from m2ml.equivalence.report import BackendReport, OutputReport, Report

#: Most outputs drawn per backend, the worst ones; the title says how many there are.
MOST_OUTPUTS = 24

#: The colour scale, in units of the bound: from a thousandth of it to ten thousand times it.
LEAST, MOST = 1e-3, 1e4


def draw(report: Report, path: Any) -> None:
    """Write ``report`` as an image to ``path``: a row of maps per backend, one map per output.

    Blue lies inside the bound, the darker the nearer to it, red outside; white is equal or decided by rounding.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, TwoSlopeNorm
    from matplotlib.figure import Figure

    rows = [(b, _worst_first(b)) for b in report.backends]
    columns = min(max((len(outputs) for _, outputs in rows), default=1) or 1, 6)
    lines = sum(max(math.ceil(len(outputs) / columns), 1) for _, outputs in rows) or 1
    figure = Figure(figsize=(2.6 * columns + 1.2, 2.6 * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.asarray(figure.subplots(lines, columns, squeeze=False))
    for axis in axes.flat:
        axis.set_axis_off()
    norm = TwoSlopeNorm(0.0, math.log10(LEAST), math.log10(MOST))
    inside, outside = colormaps["Blues"](np.linspace(0.1, 0.8, 128)), colormaps["OrRd"](np.linspace(0.5, 1, 128))
    colors = ScalarMappable(norm, ListedColormap(np.concatenate([inside, outside])))
    line = 0
    for backend, outputs in rows:
        for place, output in enumerate(outputs):
            _map(axes[line + place // columns, place % columns], backend, output, colors)
        if not outputs:
            axes[line, 0].text(0, 0.5, f"{backend.backend}: {backend.error or 'no outputs'}", wrap=True)
        line += max(math.ceil(len(outputs) / columns), 1)
    bar = figure.colorbar(colors, ax=list(axes.flat), label="distance from the reference in units of the bound")
    ticks = range(int(math.log10(LEAST)), int(math.log10(MOST)) + 1)
    bar.set_ticks(list(ticks), labels=[f"{10.0**t:g}" for t in ticks])
    figure.suptitle(_title(report))
    figure.savefig(path, dpi=120)


def _worst_first(backend: BackendReport) -> list[OutputReport]:
    """The outputs to draw, in their own order; of too many, the worst ones."""
    worst = sorted(backend.outputs, key=lambda output: -output.worst)[:MOST_OUTPUTS]
    return [output for output in backend.outputs if any(output is kept for kept in worst)]


def _title(report: Report) -> str:
    most = max((len(b.outputs) for b in report.backends), default=0)
    shown = f" ({MOST_OUTPUTS} worst of {most} outputs)" if most > MOST_OUTPUTS else ""
    return f"{report.name} against the reference{shown}"


def _map(axis: Any, backend: BackendReport, output: OutputReport, colors: Any) -> None:
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    said = output.mismatch or f"{output.worst:.2g} of the bound"
    color = "black" if output.ok else "darkred"
    axis.set_title(f"{backend.backend} {output.path or 'result'}\n{said}", fontsize=8, color=color, wrap=True)
    axis.set_xlabel(f"{output.dtype}{list(output.shape)}", fontsize=7)
    if output.map is None:
        return
    with np.errstate(divide="ignore"):
        share = np.clip(np.log10(output.map.astype(float)), math.log10(LEAST), math.log10(MOST))
    axis.imshow(
        np.ma.masked_where(output.map == 0, share),
        cmap=colors.cmap,
        norm=colors.norm,
        aspect="auto",
        interpolation="nearest",
    )
