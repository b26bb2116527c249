"""The errors of m2ml_kernels. Each message is one sentence: what, where, which values, what to do."""

from __future__ import annotations


class KernelError(Exception):
    """Base class of every error raised on purpose by m2ml_kernels."""


class CompilerMissing(KernelError, RuntimeError):
    """No C++ compiler was found, or the one that was named does not answer."""


class CompileError(KernelError, RuntimeError):
    """A source does not compile; ``log`` is all that the compiler said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
