"""A tiny model of a family, its output and the bound of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import family_cases
import jax
import numpy as np

import m2ml
from m2ml.equivalence import measured_bounds
from m2ml.equivalence.bounds import Bound
from m2ml.equivalence.judgement import judge
from m2ml.models import functional
from m2ml.models.checkpoints import open_checkpoint
from m2ml.models.families import family_of
from m2ml.models.family import Family


@dataclass(frozen=True)
class TinyFamily:
    """A tiny model: where its checkpoint lies, and what it may give for `family_cases.inputs`."""

    name: str
    folder: Path
    family: Family
    config: Any
    golden: Any
    bound: Bound

    def params(self, backend: str) -> Any:
        return self.family.load_params(open_checkpoint(self.folder), self.config, backend=backend)

    def output(self, backend: str) -> Any:
        return forward(self.family, self.config).on(backend)(self.params(backend), *family_cases.inputs(self.name))

    def hold(self, output: Any) -> None:
        """Fail where an output leaves the bound anywhere but in padding."""
        found = np.where(family_cases.real(self.name), np.asarray(m2ml.get(output)), self.bound.expected)
        report = judge(self.name, found.astype(np.float32), self.bound)
        assert report.ok, str(report)


def forward(family: Family, config: Any) -> Any:
    return m2ml.jit(functional(family.module, config).apply)


def tiny_family(name: str, folder: Path) -> TinyFamily:
    """The model of a case of `family_cases`, written to ``folder``, and the bound of its output."""
    case = family_cases.golden()[name]
    checkpoint = open_checkpoint(family_cases.write(folder, case, shards=2))
    family = family_of(checkpoint.settings)
    config = family.read_config(checkpoint.settings)
    inputs = family_cases.inputs(name)
    host = family.load_params(checkpoint, config, backend="reference")
    program = forward(family, config).program(host, *inputs)
    leaves = [np.asarray(x) for x in jax.tree.leaves((host, inputs))]
    return TinyFamily(name, folder, family, config, np.array(case["output"]), measured_bounds(program, leaves)[0])
