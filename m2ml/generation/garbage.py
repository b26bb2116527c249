"""When Python looks for garbage: not while a model is loaded or its first program traced."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collected_later() -> Iterator[None]:
    """Objects are not searched for cycles inside, in the whole process.

    The many that loading and tracing make stay, and set off a search of all that the libraries hold: longer than a
    small model's tokenizer takes.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
