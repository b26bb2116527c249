"""Every example is compiled for its own shapes: what XLA keeps of them is let go after each test."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    yield
    jax.clear_caches()
