"""Where m2ml keeps what it may throw away: fetched packages and measured choices."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

ENVIRONMENT = "M2ML_CACHE"


def cache_folder() -> Path:
    """``$M2ML_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else platformdirs.user_cache_path("m2ml")
