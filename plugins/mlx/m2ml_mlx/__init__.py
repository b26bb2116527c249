"""The ``mlx`` backend: a JAX program on MLX. Metal on a Mac, CUDA or CPU elsewhere."""

from collections.abc import Callable

from m2ml.kernel import Kernel
from m2ml.plugins import Register, hookimpl


@hookimpl
def m2ml_register_backends(register: Register) -> None:
    register(
        "mlx",
        _backend,
        about="MLX: Metal on a Mac, CUDA or CPU elsewhere",
        install='pip install "m2ml[mlx]"',
    )


@hookimpl
def m2ml_register_kernels(register: Callable[[Kernel], None]) -> None:
    from m2ml_mlx.kernels import KERNELS

    for kernel in KERNELS:
        register(kernel)


def _backend() -> object:
    import os

    # Float32 means float32 unless the user asks otherwise; MLX reads this when it starts.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")

    from m2ml_mlx.engine import MlxBackend

    return MlxBackend()
