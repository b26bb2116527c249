"""What every test shares: MLX without its compiler, a cache folder of its own, deterministic hypothesis."""

import os
import tempfile

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["M2ML_CACHE"] = tempfile.mkdtemp(prefix="m2ml-tests-")

from hypothesis import HealthCheck, settings  # noqa: E402 - MLX and JAX read the environment when they start

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("suite")
