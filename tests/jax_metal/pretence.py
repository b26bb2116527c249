"""What programs in these tests begin with, in a process of their own: m2ml believes to be on a Mac."""

import contextlib
import os
import warnings

import fake_mac
import jax
import jax.numpy as jnp
import numpy as np
from m2ml_jax_metal import engine, ladder
from m2ml_jax_metal.probe import Answer

import m2ml
from m2ml.plugins import registry

__all__ = [
    "contextlib",
    "engine",
    "fake_mac",
    "jax",
    "jnp",
    "ladder",
    "m2ml",
    "np",
    "os",
    "raises",
    "registry",
    "start",
]
__all__ += ["caught", "pretend"]


def pretend(*providers, ask=None, **more):
    """Have the backend look at a Mac with these providers; their probes pass unless ``ask`` says otherwise."""
    fake = fake_mac.mac(*providers, environment=os.environ, **more)
    ask = ask or (lambda *_: Answer(True, "5 checks passed", "Apple GPU", 3.0))
    registry.discover()
    registry._entries["jax_metal"].factory = lambda: engine.find_backend(fake, ask)
    ladder.read_machine = lambda: fake


def start(*providers, **more):
    """The backend on such a Mac."""
    pretend(*providers, **more)
    return registry.get("jax_metal")


def raises(kind, fn, *args):
    """The text of the error that ``fn`` raises."""
    try:
        fn(*args)
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was not raised")


@contextlib.contextmanager
def caught(kind):
    """A list that has the texts of the warnings of this kind at the end."""
    texts = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in found if issubclass(w.category, kind)]
