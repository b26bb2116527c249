"""Where m2ml keeps what it may throw away: fetched packages, compiled programs and measured choices."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

ENVIRONMENT = "M2ML_CACHE"


def cache_folder() -> Path:
    """``$M2ML_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else platformdirs.user_cache_path("m2ml")


def keep_compiled() -> None:
    """Let JAX keep what XLA compiles in the cache folder, so that a later process need not compile it again.

    For the whole process, and best at its beginning. Where the user has chosen JAX's folder, nothing changes.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        compilation_cache.reset_cache()  # it has decided against a cache if something was compiled before


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all, whoever else writes it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        try:
            json.dump(value, file, indent=1)
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)
