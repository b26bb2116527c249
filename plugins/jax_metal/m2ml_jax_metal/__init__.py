"""The ``jax_metal`` backend: JAX on an Apple GPU, through whichever provider is installed."""

from collections.abc import Callable, Mapping

from m2ml.kernel import Kernel
from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("jax_metal", _backend, about="JAX on an Apple GPU", variants=_variants)


@hookimpl
def m2ml_register_kernels(register: Callable[[Kernel], None]) -> None:
    from m2ml_jax_metal.kernels import KERNELS

    for kernel in KERNELS:
        register(kernel)


def _backend() -> object:
    from m2ml_jax_metal.engine import find_backend

    return find_backend()


def _variants() -> Mapping[str, Mapping[str, str]]:
    from m2ml_jax_metal.ladder import variants

    return variants()
