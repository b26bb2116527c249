"""What releases of the providers compute wrongly, as data, and what is done about each.

An entry acts where its distribution, versions, chip, macOS and environment fit:

- ``refuse``: without a primitive the provider is not used at all, with one the program is not run;
- ``fallback``: a program with the primitive runs on the CPU, with a warning, or is refused when strict;
- ``rewrite``: the primitive is lowered otherwise on the provider's platform (`m2ml_jax_metal.rewrites`), or, for
  functions of JAX that a provider replaces, the stock ones are put back while m2ml traces (`m2ml.stock`);
- ``env``: environment variables are set before the provider's library is loaded, unless the user has set them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from packaging.specifiers import SpecifierSet

from m2ml import Equation
from m2ml_jax_metal.machine import Machine


def _always(equation: Equation) -> bool:
    return True


@dataclass(frozen=True)
class KnownBad:
    """One thing that goes wrong. ``what`` continues the sentence "<distribution> <version> ..."."""

    distribution: str
    versions: str
    action: Literal["refuse", "fallback", "rewrite", "env"]
    what: str
    source: str
    primitive: str = ""
    when: Callable[[Equation], bool] = _always
    chip: str = "*"
    macos: str = ""
    if_set: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    one_equation: bool = False
    rewrite: str = ""

    def applies(self, distribution: str, version: str, machine: Machine) -> bool:
        """Whether the entry speaks of this release on this machine."""
        return (
            self.distribution == distribution
            and SpecifierSet(self.versions).contains(version, prereleases=True)
            and fnmatchcase(machine.chip, self.chip)
            and (not self.macos or SpecifierSet(self.macos).contains(machine.macos or "0"))
            and (not self.if_set or self._is_set(machine.environment))
        )

    def _is_set(self, environment: Mapping[str, str]) -> bool:
        return any(name in environment and fnmatchcase(environment[name], v) for name, v in self.if_set.items())

    def meets(self, equation: Equation) -> bool:
        """Whether an equation is of the kind that goes wrong."""
        return self.primitive in ("*", equation.name) and self.when(equation)


def _gathers_single_elements(equation: Equation) -> bool:
    """As ``take_along_axis`` does; looking up whole rows of a table does not."""
    return all(size == 1 for size in equation.params["slice_sizes"])


_METALJAX_NOTES = "https://pypi.org/project/metaljax/0.11.9/"

KNOWN_BAD: tuple[KnownBad, ...] = (
    KnownBad(
        "jax-mps",
        "<0.10.11",
        "refuse",
        "gives zeros for a reversed view times a scalar",
        "https://github.com/tillahoffmann/jax-mps/issues/232",
    ),
    KnownBad(
        "jax-mps",
        "<0.10.10",
        "refuse",
        "gives wrong gradients of loops that contain a cond, and what it could not evaluate as memory never written",
        "https://github.com/tillahoffmann/jax-mps/issues/195",
    ),
    KnownBad(
        "jax-mps",
        "<0.11",
        "refuse",
        "gives wrong gradients of fused reductions and of layer norm's bias now and then",
        "https://github.com/tillahoffmann/jax-mps/issues/170",
    ),
    KnownBad(
        "jax-mps",
        ">=0.9",
        "rewrite",
        "puts functions of its own in place of jax.nn.gelu, jax.nn.dot_product_attention and nnx.LayerNorm.__call__ "
        "for the whole process: it swaps two axes of attention's mask, and vmap, jvp and second derivatives fail",
        "reproduced with the release's own Python files: m2ml's tests/jax_metal/test_wheels.py",
        rewrite="stock functions",
    ),
    KnownBad(
        "jax-mps",
        ">=0.9",
        "fallback",
        "gives a matrix that is not positive definite back where its Cholesky factor is NaN",
        "https://github.com/tillahoffmann/jax-mps/blob/main/tests/configs/linalg.py",
        primitive="cholesky",
    ),
    KnownBad(
        "jax-mps",
        ">=0.9",
        "rewrite",
        "reduces columns of reversed views wrongly (MLX, open)",
        "https://github.com/ml-explore/mlx/issues/4528",
        primitive="rev",
        rewrite="rev",
    ),
    KnownBad(
        "metaljax",
        ">=0.11",
        "rewrite",
        "is built on the MLX that reduces columns of reversed views wrongly (open)",
        "https://github.com/ml-explore/mlx/issues/4528",
        primitive="rev",
        rewrite="rev",
    ),
    KnownBad(
        "jax-mps",
        ">=0.9",
        "env",
        "multiplies float32 matrices with 10 bits of mantissa by default (MLX's matrix units)",
        "https://github.com/ml-explore/mlx/issues/3534",
        chip="Apple M[5-9]*",
        environment={"MLX_ENABLE_TF32": "0"},
    ),
    KnownBad(
        "metaljax",
        "<0.11.8",
        "refuse",
        "gives inexact remainders, wrong shifts of unsigned integers and wrong scans",
        _METALJAX_NOTES,
    ),
    KnownBad(
        "metaljax",
        ">=0.11",
        "refuse",
        "gives wrong results from the second call on when MLX's command buffers are made smaller, and "
        "MLX_MAX_OPS_PER_BUFFER or MLX_MAX_MB_PER_BUFFER is set: unset it",
        _METALJAX_NOTES,
        if_set={"MLX_MAX_OPS_PER_BUFFER": "*", "MLX_MAX_MB_PER_BUFFER": "*"},
    ),
    KnownBad(
        "metaljax",
        ">=0.11",
        "refuse",
        "needs volatile loop counters, since Apple's compiler miscompiles loops without them, and "
        "METALJAX_MSL_VOLATILE turns them off: unset it",
        _METALJAX_NOTES,
        if_set={"METALJAX_MSL_VOLATILE": "0"},
    ),
    KnownBad(
        "jax-metallib",
        ">=0",
        "env",
        "multiplies large float32 matrices in float16 by default",
        "https://pypi.org/project/jax-metallib/",
        environment={"JAX_METALLIB_GEMM_TRUE_F32": "1"},
    ),
    KnownBad(
        "jax-metal",
        "<0.1.1",
        "refuse",
        "updates slices of arrays wrongly and gives NaN from take_along_axis",
        "https://github.com/jax-ml/jax/issues/16326",
    ),
    KnownBad(
        "jax-metal",
        ">=0",
        "fallback",
        "gathers single elements (take_along_axis) into NaN now and then",
        "https://github.com/jax-ml/jax/issues/21757",
        primitive="gather",
        when=_gathers_single_elements,
    ),
    KnownBad(
        "jax-metal",
        ">=0",
        "fallback",
        "gives other numbers each time when equations run one at a time",
        "https://github.com/jax-ml/jax/issues/19132",
        primitive="*",
        one_equation=True,
    ),
)


def known_bad(
    distribution: str, version: str, machine: Machine, entries: Iterable[KnownBad] = KNOWN_BAD
) -> tuple[KnownBad, ...]:
    """The entries that speak of this release on this machine."""
    return tuple(entry for entry in entries if entry.applies(distribution, version, machine))


def environment(entries: Iterable[KnownBad]) -> dict[str, str]:
    """The variables that ``entries`` ask for."""
    return {name: value for entry in entries if entry.action == "env" for name, value in entry.environment.items()}
