"""The ``mlx`` backend: a JAX program on MLX. Metal on a Mac, CUDA or CPU elsewhere."""

from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register("mlx", _backend, install='pip install "m2ml[mlx]"')


def _backend() -> object:
    from m2ml_mlx.engine import MlxBackend

    return MlxBackend()
