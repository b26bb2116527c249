"""What a run leaves behind for people and programs: a picture of its loss curves and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Panel:
    """Loss curves of one model by backend; ``bound``, where measured, is what they may differ by at each step."""

    title: str
    curves: Mapping[str, Array]
    reference: str | None = None
    bound: Array | None = None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_curves(path: Path, panels: Sequence[Panel]) -> None:
    """Draw each panel as a column: the curves, and below them their differences from the reference, if one is named."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 2 if any(panel.reference for panel in panels) else 1
    figure = Figure(figsize=(6.4 * len(panels), 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        _draw_losses(axes[0, column], panel)
        if panel.reference:
            _draw_differences(axes[1, column], panel, panel.curves[panel.reference])
    figure.savefig(path, dpi=120)


def _draw_losses(axes: Any, panel: Panel) -> None:
    count = len(panel.curves)
    for place, (name, losses) in enumerate(panel.curves.items()):
        axes.plot(np.arange(1, len(losses) + 1), losses, label=name, linewidth=1 + 1.5 * (count - 1 - place), alpha=0.8)
    axes.set(title=panel.title, xlabel="step", ylabel="loss (nats)")
    axes.legend()


def _draw_differences(axes: Any, panel: Panel, reference: Array) -> None:
    """Differences on a logarithmic axis; one that is exactly 0 has no place on it and leaves a gap."""
    others = {name: losses for name, losses in panel.curves.items() if name != panel.reference}
    for name, losses in others.items():
        both = min(len(losses), len(reference))
        difference = np.abs(losses[:both].astype(float) - reference[:both])
        shown = np.where(difference > 0, difference, np.nan)
        axes.plot(np.arange(1, both + 1), shown, marker=".", label=f"{name} - {panel.reference}")
    if panel.bound is not None:
        axes.plot(np.arange(1, len(panel.bound) + 1), panel.bound, "k--", label="measured bound")
    axes.set(xlabel="step", ylabel="difference of the loss", yscale="log")
    axes.legend()
