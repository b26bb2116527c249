"""What every test shares: MLX without its compiler, programs compiled anew, a cache folder of its own, and
deterministic hypothesis.

At the end of a run stands a table of the implementations that ran the samples of ops.
"""

import os
import tempfile
from collections import Counter, defaultdict

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
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


def pytest_terminal_summary(terminalreporter):
    """Per op, backend and dtype: how many samples each implementation ran, in tests that passed."""
    table = defaultdict(Counter)
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            if name == "ran":
                op, backend, dtype, implementation, count = value
                table[op, backend, dtype][implementation] += count
    if table:
        terminalreporter.section("samples of ops, by what ran them")
        for (op, backend, dtype), counts in sorted(table.items()):
            said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            terminalreporter.write_line(f"{op} on {backend} in {dtype}: {said}")
