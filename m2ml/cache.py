"""Where m2ml keeps what it may throw away: fetched packages and measured choices."""

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
