"""The cpu engine: XLA on the host processor, and what `m2ml.doctor` says of the compiler of its kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from m2ml.kernel import kernels
from m2ml.xla import XlaBackend

#: Where Linux says who gets huge pages.
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: What makes the GNU C library ask for them.
ASKING = "glibc.malloc.hugetlb=1"

#: What shows that the compiler and the headers work.
PROBE = '#include "call.h"\n\nM2ML_KERNEL(probe) {}\n'


class CpuBackend(XlaBackend):
    """Runs programs through ``jax.jit`` on the host; C++ kernels may run the ops in them."""

    def __init__(self) -> None:
        super().__init__("cpu", "cpu")

    def diagnose(self) -> Sequence[str]:
        """Of the C++ kernels the compiler, the seconds it took, where they are, and what failed; and huge pages."""
        return (*self._kernels(), *huge_pages())

    def _kernels(self) -> Sequence[str]:
        from m2ml_kernels import KernelError, compile_shared, object_folder

        from m2ml_cpu.ffi import settings

        try:
            built = compile_shared(PROBE, name="probe", **settings())
        except KernelError as error:
            return (f"C++ kernels do not compile, so ops run their definitions: {' '.join(str(error).split())}",)
        lines = [f"C++ kernels: {built.compiler}, kept in {object_folder()}"]
        done, waiting = self._compiled()
        if done:
            lines.append("compiled: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in done.items()))
        if waiting:
            lines.append("compiled on first use: " + ", ".join(waiting))
        failed = {k.name: k.__dict__.get("loaded") for k in kernels.all() if k.backend == self.name}
        lines += [f"{name} failed: {why}" for name, why in failed.items() if isinstance(why, Exception)]
        return lines

    def _compiled(self) -> tuple[dict[str, float], list[str]]:
        """Seconds by file of kernels that are in the cache, and the files that are not."""
        from m2ml_kernels import find_shared

        from m2ml_cpu.ffi import settings

        done: dict[str, float] = {}
        waiting: list[str] = []
        sources = {k.source for k in kernels.all() if k.backend == self.name and isinstance(k.source, Path)}
        for source in sorted(sources):
            built = find_shared(source, name=source.name, **settings())
            if built:
                done[source.name] = built.seconds
            else:
                waiting.append(source.name)
        return done, waiting


def huge_pages(setting: Path = HUGE_PAGES) -> Sequence[str]:
    """A hint where memory comes in huge pages on request only and nobody requests them: XLA's temporary arrays are new
    at every call, and the system then hands them over in pieces of 4 KiB."""
    asked = ASKING in os.environ.get("GLIBC_TUNABLES", "")
    if asked or not setting.exists() or "[madvise]" not in setting.read_text():
        return ()
    return (
        f"memory: in small pages; GLIBC_TUNABLES={ASKING} in the environment makes programs with large arrays faster",
    )
