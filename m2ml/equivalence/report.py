"""What `compare` found: per backend, per output, per class of elements; as text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2ml.errors import Disagreement

Array = np.ndarray[Any, Any]

#: Version of what `Report.json` writes; it grows when a field is renamed, removed or changes its meaning.
SCHEMA = 1


@dataclass(frozen=True)
class ClassReport:
    """The elements of one output that are of one class, by what the reference says of them.

    ``name`` is ``finite``, ``zero``, ``subnormal``, ``infinite`` (overflow included), ``nan``, ``exact`` (integers
    and booleans), or ``decided by rounding``, whose differences are reported and not judged. ``worst`` is their
    largest difference in units of the bound, at ``index``, where the backend has ``got``, the reference ``expected``.
    """

    name: str
    elements: int
    difference: float
    worst: float
    index: tuple[int, ...]
    got: Any
    expected: Any

    def __str__(self) -> str:
        where = f" at {list(self.index)}" if self.index else ""
        said = f"{self.elements:,} {self.name}: "
        if self.difference == 0 and self.worst <= 1:
            return said + "equal"
        values = f"{_text(self.got)}, reference {_text(self.expected)}"
        return said + f"largest difference {self.difference:.3g}, {self.worst:.3g} of the bound{where}: {values}"


@dataclass(frozen=True)
class OutputReport:
    """One output of one backend. ``worst`` is its largest distance from the reference in units of the bound.

    ``map`` says where the differences sit: the largest share of the bound per cell, float32[rows, columns], the last
    axis of the output across and all others down, at most 256 cells each way.
    """

    path: str
    dtype: str
    difference: float
    worst: float
    index: tuple[int, ...]
    unstable: int
    mismatch: str = ""
    shape: tuple[int, ...] = ()
    classes: tuple[ClassReport, ...] = ()
    map: Array | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        return not self.mismatch and self.worst <= 1.0

    def __str__(self) -> str:
        where = f" at {list(self.index)}" if self.index else ""
        largest = f"largest difference {self.difference:.3g}, {self.worst:.3g} of the bound{where}"
        said = self.mismatch or (largest if self.difference or self.worst else "equal")
        unstable = f", {self.unstable} elements decided by rounding" if self.unstable else ""
        return f"{self.path or 'result'} {self.dtype}: {said}{unstable}"


@dataclass(frozen=True)
class Divergence:
    """The first equation whose output leaves its bound.

    ``primitive`` is its name, ``equation`` its description with the types of its inputs, ``source`` the user's line,
    ``output`` its worst output. ``path`` says which iteration of which loop, and is empty at top level; ``how`` says
    what was run: ``"alone"`` (the equation by itself, on the reference's inputs), ``"compiled"`` (the beginning of the
    program up to this equation, compiled as one) or ``"whole"`` (only the whole program, compiled, disagrees).
    """

    primitive: str
    equation: str
    source: str
    output: OutputReport
    path: str = ""
    how: str = "alone"

    def __str__(self) -> str:
        where = f" in {self.path}" if self.path else ""
        first = f"the first equation outside its bound is {self.equation}{where}"
        if self.how == "compiled":
            first = (
                f"every equation alone is inside its bound; compiled as one, the program leaves it at {self.equation}"
            )
        if self.how == "whole":
            first = (
                f"every equation alone is inside its bound, and so is every beginning of the program; "
                f"compiled whole, it leaves it in the output made by {self.equation}"
            )
        return f"{first}: {self.output}"


@dataclass(frozen=True)
class BackendReport:
    """What one backend gave; ``error`` is set when it gave nothing, ``divergence`` when it disagrees."""

    backend: str
    outputs: tuple[OutputReport, ...]
    error: str = ""
    divergence: Divergence | None = None

    @property
    def ok(self) -> bool:
        return not self.error and all(output.ok for output in self.outputs)

    def lines(self) -> list[str]:
        lines = [f"  {self.backend}: {self.error or ('agrees' if self.ok else 'DISAGREES')}"]
        if self.divergence:
            lines.append(f"    {self.divergence}")
        for out in self.outputs:
            lines.append(f"    {out}")
            if not out.ok or {part.name for part in out.classes} - {"finite", "exact"}:
                lines += [f"      {part}" for part in out.classes]
        return lines


@dataclass(frozen=True)
class Report:
    """The result of `compare`. ``str()`` of it is a table; `check` raises when a backend disagrees.

    ``notes`` are sentences about the program itself: where its first NaN comes from, what was not run twice.
    """

    name: str
    backends: tuple[BackendReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(report.ok for report in self.backends)

    def check(self) -> Report:
        """Return self, or raise `m2ml.Disagreement` with the table."""
        if not self.ok:
            raise Disagreement(str(self))
        return self

    def __str__(self) -> str:
        lines = [f"{self.name} against the reference", *(f"  note: {note}" for note in self.notes)]
        return "\n".join([*lines, *(line for report in self.backends for line in report.lines())])

    def as_dict(self) -> dict[str, Any]:
        """What `json` writes, as dictionaries and lists; infinities and NaN are the strings JSON lacks numbers for."""
        backends = {report.backend: _backend(report) for report in self.backends}
        return {"schema": SCHEMA, "name": self.name, "ok": self.ok, "notes": list(self.notes), "backends": backends}

    def json(self) -> str:
        """The report as JSON. ``schema`` is its version: fields are only added within one."""
        return json.dumps(self.as_dict(), indent=2)

    def picture(self, path: Any) -> None:
        """Write a PNG (or what the suffix of ``path`` says) of where the differences sit, in units of the bound."""
        from m2ml.equivalence.picture import draw

        draw(self, path)


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float | complex) else str(value)


def _number(value: Any) -> Any:
    """A value as JSON has it: complex numbers as pairs, what is not finite as text."""
    if isinstance(value, complex):
        return [_number(value.real), _number(value.imag)]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _fields(report: ClassReport | OutputReport, names: str) -> dict[str, Any]:
    values: Mapping[str, Any] = {name: getattr(report, name) for name in names.split()}
    return {key: list(v) if isinstance(v, tuple) else _number(v) for key, v in values.items()}


def _output(report: OutputReport) -> dict[str, Any]:
    fields = _fields(report, "path dtype shape ok difference worst index unstable mismatch")
    parts = [_fields(part, "name elements difference worst index got expected") for part in report.classes]
    return fields | {"classes": parts}


def _backend(report: BackendReport) -> dict[str, Any]:
    said: dict[str, Any] = {"ok": report.ok, "error": report.error, "outputs": [_output(o) for o in report.outputs]}
    found = report.divergence
    said["divergence"] = found and {
        "primitive": found.primitive,
        "equation": found.equation,
        "source": found.source,
        "path": found.path,
        "how": found.how,
        "output": _output(found.output),
    }
    return said
