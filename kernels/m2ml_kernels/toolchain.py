"""Compile C++ on the user's machine, once.

An object is named after everything it was made of: the source, the content of every header it reads, the flags, the
compiler's version (which stands for the system's headers), and the processor where the code is made for it. So nothing
is compiled twice and nothing stale is loaded. Beside each object stands a record of how long it took and what its bytes
must be.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from m2ml_kernels.compilers import NATIVE, Compiler, find_compiler, host_cpu
from m2ml_kernels.errors import CompileError

CACHE_ENVIRONMENT = "M2ML_CACHE"
_BASE_FLAGS = ("-std=c++17", "-O2", "-fPIC")
# GCC links crtfastmath.o for each of these: loading such an object turns denormals off in the whole process.
_FLUSHING = ("-ffast-math", "-Ofast", "-funsafe-math-optimizations")
_ERROR = re.compile(r"^(?P<place>[^\s:][^:\n]*:\d+)(?::\d+)?: (?:fatal )?error: (?P<what>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Built:
    """A compiled object: where it lies, how many seconds its compilation took (whenever that was), by which compiler,
    and whether this call found it in the cache."""

    path: Path
    seconds: float
    cached: bool
    compiler: Compiler


def compile_shared(
    source: Path | str, *, flags: Sequence[str] = (), include: Sequence[Path | str] = (), name: str
) -> Built:
    """Compile one C++17 source (a file, or its text) to a shared object, or find it in the cache.

    ``flags`` follow ``-std=c++17 -O2 -fPIC`` and may override them; ``include`` are header folders; ``name`` is what
    errors and the file's name say. Safe when several processes build the same thing at once.
    Raises `CompilerMissing`, `CompileError`, and ValueError for flags that would change the whole process's arithmetic.
    """
    return _compile(_job(source, ("-shared", *flags), include, name, ".so"))


def find_shared(
    source: Path | str, *, flags: Sequence[str] = (), include: Sequence[Path | str] = (), name: str
) -> Built | None:
    """What `compile_shared` would find in the cache, or None. Raises `CompilerMissing`."""
    return _job(source, ("-shared", *flags), include, name, ".so").cached()


def compile_program(
    source: Path | str,
    *,
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    include: Sequence[Path | str] = (),
    name: str,
) -> Built:
    """Compile one C++17 source to an executable, otherwise as `compile_shared`; ``link_flags`` only link."""
    return _compile(_job(source, flags, include, name, "", link_flags))


def object_folder() -> Path:
    """Where objects are kept: ``objects`` in ``$M2ML_CACHE`` or in the user's cache folder of m2ml."""
    chosen = os.environ.get(CACHE_ENVIRONMENT)
    return (Path(chosen) if chosen else platformdirs.user_cache_path("m2ml")) / "objects"


def _job(
    source: Path | str,
    flags: Sequence[str],
    include: Sequence[Path | str],
    name: str,
    suffix: str,
    link_flags: Sequence[str] = (),
) -> _Job:
    for flag in (*flags, *link_flags):
        if flag in _FLUSHING:
            raise ValueError(
                f"{name}: {flag} turns denormals off in the whole process; pass the single flags it stands for"
            )
    compiler, folder = find_compiler(), object_folder()
    return _Job(
        source, compiler, (*_BASE_FLAGS, *flags), tuple(map(str, include)), name, folder, suffix, tuple(link_flags)
    )


def _compile(job: _Job) -> Built:
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        return job.cached() or job.build()
    except OSError as error:
        said = (
            f"{job.name} cannot be kept in {job.folder} ({error.strerror}): set ${CACHE_ENVIRONMENT} to another folder"
        )
        raise CompileError(said) from error


@dataclass(frozen=True)
class _Job:
    source: Path | str
    compiler: Compiler
    flags: tuple[str, ...]
    include: tuple[str, ...]
    name: str
    folder: Path
    suffix: str
    link_flags: tuple[str, ...]

    @functools.cached_property
    def inputs(self) -> str:
        """Digest of all that is known before compiling: everything but the headers."""
        text = self.source if isinstance(self.source, str) else f"{self.source.resolve()}\n{self.source.read_text()}"
        parts = [
            text,
            *self.flags,
            "--",
            *self.link_flags,
            "--",
            *self.include,
            *self.compiler.command,
            self.compiler.version,
        ]
        if NATIVE in self.flags:
            parts.append(host_cpu())
        return _digest("\0".join(parts).encode())

    @property
    def stem(self) -> str:
        """The name as files have it."""
        return re.sub(r"\W", "_", self.name)[:80]

    @property
    def manifest(self) -> Path:
        """The file that lists the headers which the last compilation read."""
        return self.folder / f"{self.stem}-{self.inputs}.headers"

    def cached(self) -> Built | None:
        """What the cache has, if it is whole; whatever is missing, unreadable or altered is as good as absent."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            path = self.object_of(self.manifest.read_text().splitlines())
            record = json.loads(_record_of(path).read_text())
            if record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
                return Built(path, float(record["seconds"]), True, self.compiler)
        return None

    def object_of(self, headers: Sequence[str]) -> Path:
        """The object's path: its name carries the digest of the inputs and of the headers' content."""
        contents = [_file_digest(header, *_stamp(header)) for header in headers]
        return self.folder / f"{self.stem}-{_digest(' '.join([self.inputs, *contents]).encode())}{self.suffix}"

    def build(self) -> Built:
        with _locked(self.manifest.with_suffix(".lock")):
            return self.cached() or self.build_alone()

    def build_alone(self) -> Built:
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="building-") as scratch:
            made, headers, seconds = self.run_compiler(Path(scratch))
            path = self.object_of(headers)
            record = {"seconds": seconds, "compiler": str(self.compiler), "sha256": _sha256(made), "headers": headers}
            made.replace(path)
            _write(_record_of(path), json.dumps(record, indent=1), scratch)
            _write(self.manifest, "\n".join(headers), scratch)
        return Built(path, seconds, False, self.compiler)

    def run_compiler(self, scratch: Path) -> tuple[Path, list[str], float]:
        """The object, the headers it read, and the seconds it took."""
        source = self.source
        if isinstance(source, str):
            source = scratch / f"{self.stem}.cc"
            source.write_text(str(self.source))
        made, rules = scratch / "object", scratch / "headers.d"
        started = time.perf_counter()
        if self.link_flags:
            part = scratch / "part.o"
            self.call(["-MMD", "-MF", str(rules), "-c", str(source), "-o", str(part)], scratch)
            self.call([*self.link_flags, str(part), "-o", str(made)], scratch)
        else:
            self.call(["-MMD", "-MF", str(rules), str(source), "-o", str(made)], scratch)
        return made, _headers(rules.read_text(), source), time.perf_counter() - started

    def call(self, arguments: Sequence[str], scratch: Path) -> None:
        command = [*self.compiler.command, *self.compiler.translate(self.flags)]
        if self.compiler.kind == "zig":
            command.append("-fno-sanitize=undefined")  # zig turns it on by itself
        command += [*(f"-I{path}" for path in self.include), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            log = done.stderr.replace(f"{scratch}/", "")
            raise CompileError(f"{self.name} does not compile: {first_error(log)}", log)


def first_error(log: str) -> str:
    """The first error of a compiler's output as ``file:line: what``."""
    if found := _ERROR.search(log):
        return f"{found['place']}: {found['what']}"
    lines = [line for line in log.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line or "undefined" in line), lines[0] if lines else "no reason given"
    )


def _headers(rules: str, source: Path) -> list[str]:
    """The prerequisites in a make rule that a compiler wrote, without the source."""
    words = re.split(r"(?<!\\)\s+", rules.partition(": ")[2].replace("\\\n", " ").strip())
    files = dict.fromkeys(word.replace("\\ ", " ") for word in words)
    return [file for file in files if file and Path(file) != source]


def _stamp(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


@functools.cache
def _file_digest(path: str, modified: int, size: int) -> str:
    return _sha256(Path(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write(path: Path, text: str, scratch: str) -> None:
    unfinished = Path(scratch) / path.name
    unfinished.write_text(text)
    unfinished.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on ``path`` that ends with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
