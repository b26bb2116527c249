"""The ``cpu`` backend: XLA on the host processor, with C++ kernels for ops. It is m2ml's default."""

from collections.abc import Callable

from m2ml.kernel import Kernel
from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("cpu", _backend, about="JAX on XLA CPU; the default")


@hookimpl
def m2ml_register_kernels(register: Callable[[Kernel], None]) -> None:
    from m2ml_cpu.kernels import KERNELS

    for kernel in KERNELS:
        register(kernel)


def _backend() -> object:
    from m2ml_cpu.engine import CpuBackend

    return CpuBackend()
