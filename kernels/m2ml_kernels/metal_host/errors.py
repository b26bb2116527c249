"""What can be wrong with a Metal kernel, or with how it is called."""

from __future__ import annotations

from m2ml_kernels.errors import KernelError


class InvalidMetal(KernelError, ValueError):
    """The source is not Metal that can be read."""


class UnsupportedMetal(KernelError, NotImplementedError):
    """The source uses a part of Metal that the host does not run: textures, tensors, ray tracing."""


class InvalidLaunch(KernelError, ValueError):
    """A kernel is called with the wrong buffers, grid or threadgroup."""


class KernelFault(KernelError, RuntimeError):
    """A kernel did what Metal leaves undefined: it reached outside a buffer, or divided an integer by zero."""


class KernelTimeout(KernelError, TimeoutError):
    """A kernel did not end within its time limit."""


class SanitizerMissing(KernelError, RuntimeError):
    """The compiler has no runtime of the sanitizer."""
