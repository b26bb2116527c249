"""The ``jax_metal`` backend: JAX on an Apple GPU, through whichever provider is installed."""

from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("jax_metal", _backend, about="JAX on an Apple GPU", install="pip install jax-mps")


def _backend() -> object:
    from m2ml_jax_metal.engine import find_backend

    return find_backend()
