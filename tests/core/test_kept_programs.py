"""Compiled programs that a later process finds again."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
from m2ml.cache import keep_compiled
jax.jit(lambda x: x + 1)(1.0)
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 2, inline=True)(1.0)
"""


@pytest.mark.parametrize("chosen", [None, "of-the-user"])
def test_what_is_compiled_is_kept_where_the_user_says_or_in_the_cache_folder(chosen, tmp_path):
    environment = {**os.environ, "M2ML_CACHE": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    if chosen:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / chosen)
    subprocess.run([sys.executable, "-c", CODE], env=environment, check=True)
    (folder,) = tmp_path.iterdir()
    assert folder.name == (chosen or "programs")
    assert list(folder.glob("*-cache"))
