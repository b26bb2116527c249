"""The ``cpu`` backend: XLA on the host processor. It is m2ml's default."""

from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("cpu", _backend, about="JAX on XLA CPU; the default")


def _backend() -> object:
    from m2ml.xla import XlaBackend

    return XlaBackend("cpu", "cpu")
