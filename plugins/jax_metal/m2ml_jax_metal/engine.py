"""Find the provider of a JAX platform for Apple GPUs and run whole programs on it.

Providers are known by their distribution, never by the name of their platform: several claim ``mps``.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping

import numpy as np

from m2ml.backend import Executable, Gap
from m2ml.errors import BackendUnavailable, UnsupportedDtype
from m2ml.program import Program
from m2ml.xla import XlaBackend

#: Distribution -> the JAX platform it registers.
PROVIDERS: Mapping[str, str] = {"jax-mps": "mps", "metaljax": "metal", "jax-graft": "mtl", "jax-metal": "METAL"}

#: dtypes no Apple GPU has.
MISSING = ("float64", "complex128")


def installed_providers() -> dict[str, str]:
    """Installed provider distributions and their versions, from metadata alone."""
    found = {}
    for distribution in PROVIDERS:
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class JaxMetalBackend(XlaBackend):
    """JAX on an Apple GPU. Programs run whole on the provider's platform; what it lacks is refused, not narrowed."""

    def __init__(self, distribution: str, version: str) -> None:
        super().__init__("jax_metal", PROVIDERS[distribution])
        self.provider = f"{distribution} {version}"
        self.gaps = tuple(Gap("*", dtype, "no Apple GPU has it") for dtype in MISSING)

    #: Calls go through `compile`, which looks at the program before the provider sees it.
    jit = None  # type: ignore[assignment]

    def compile(self, program: Program) -> Executable:
        for aval in (*program.jaxpr.in_avals, *program.jaxpr.out_avals, *program.code.avals):
            if str(aval.dtype) in MISSING:
                raise UnsupportedDtype(
                    f"{program.name} uses {np.dtype(aval.dtype).name}, which no Apple GPU has; "
                    "use the backend 'cpu', or float32 in the program"
                )
        return super().compile(program)

    def explain(self, program: Program) -> list[str]:
        """Sentences for `Jitted.explain`."""
        return [f"the whole program runs on the JAX platform {self.platform!r} of {self.provider}"]


def find_backend() -> JaxMetalBackend:
    """The backend of the one installed provider; otherwise `m2ml.BackendUnavailable` with the reason."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        raise BackendUnavailable(f"an Apple GPU needs macOS on arm64; this is {sys.platform} on {platform.machine()}")
    found = installed_providers()
    if not found:
        raise BackendUnavailable(f"no provider of JAX on Apple GPUs is installed ({', '.join(PROVIDERS)})")
    if len(found) > 1:
        names = ", ".join(f"{name} {version}" for name, version in found.items())
        raise BackendUnavailable(f"several providers of JAX on Apple GPUs are installed ({names}); keep one")
    return JaxMetalBackend(*next(iter(found.items())))
