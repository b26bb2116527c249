"""What every test shares: MLX without its compiler, a cache folder of its own, deterministic hypothesis."""

import os
import tempfile

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["M2ML_CACHE"] = tempfile.mkdtemp(prefix="m2ml-tests-")

import jax
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("suite")


@pytest.fixture
def enable_x64():
    """A context manager that turns on 64-bit types, whatever this JAX calls it."""
    if hasattr(jax, "enable_x64"):
        return lambda: jax.enable_x64(True)
    return jax.experimental.enable_x64
