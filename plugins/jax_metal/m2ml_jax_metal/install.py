"""The command to type on a machine so that a provider is there."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from m2ml_jax_metal.machine import Machine
from m2ml_jax_metal.providers import Provider

#: m2ml has an extra of its own for these, named after them.
EXTRAS = ("jax-mps", "metaljax", "jax-graft", "jax-metal")

#: Pythons that m2ml runs on, in the order in which another is proposed.
_PYTHONS = ("3.12", "3.13", "3.11")


def command(machine: Machine, provider: Provider) -> str:
    """``python -m pip install "m2ml[jax-mps]"``, by a Python that the provider takes; the extra brings its JAX."""
    fits = SpecifierSet(provider.python)
    python = "python"
    if machine.system == "darwin" and not fits.contains(machine.python, prereleases=True):
        python = next((f"python{v}" for v in _PYTHONS if fits.contains(f"{v}.0")), python)
    what = f"m2ml[{provider.distribution}]" if provider.distribution in EXTRAS else provider.distribution
    return f'{python} -m pip install --upgrade "{what}"'
