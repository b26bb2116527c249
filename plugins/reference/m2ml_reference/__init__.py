"""The ``reference`` backend: NumPy in float64, one rule per primitive, the oracle of every comparison."""

from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("reference", _backend, about="NumPy in float64, one rule per primitive; the oracle")


def _backend() -> object:
    from m2ml_reference.engine import ReferenceBackend

    return ReferenceBackend()
