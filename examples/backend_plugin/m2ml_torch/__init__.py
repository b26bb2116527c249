"""The ``torch`` backend: JAX programs on PyTorch. Importing this module imports no PyTorch."""

from __future__ import annotations

from typing import Any

import m2ml


@m2ml.hookimpl
def m2ml_register_backends(register: Any) -> None:
    register("torch", _backend, about="PyTorch, one equation at a time", install="pip install torch")


def _backend() -> m2ml.Backend:
    from m2ml_torch.backend import TorchBackend

    return TorchBackend()
