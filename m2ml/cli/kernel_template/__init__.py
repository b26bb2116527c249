"""The package that ``m2ml kernel new`` writes: an op with samples, a kernel in C++ and one in Metal."""

from __future__ import annotations

import keyword
import re
import string
from importlib import resources
from pathlib import Path

from m2ml.errors import M2mlError
from m2ml.op import ops

#: Each file of the template, and where it goes.
FILES = {
    "README.md.in": "README.md",
    "pyproject.toml.in": "pyproject.toml",
    "package.py.in": "m2ml_$name/__init__.py",
    "kernel.cc.in": "m2ml_$name/$name.cc",
    "kernel.metal.in": "m2ml_$name/$name.metal",
}


def write(name: str, folder: Path) -> list[Path]:
    """Write the package of the op ``name`` into ``folder``, whole or not at all; give the files."""
    import m2ml.ops  # noqa: F401 - registers those that are taken

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise M2mlError(f"an op's name is a Python identifier in lower case, such as soft_sign; got {name}")
    if name in ops:
        raise M2mlError(f"there is an op {name} already; choose another name")
    if folder.exists():
        raise M2mlError(f"{folder} exists already; name another folder with --folder")
    texts = {folder / filled(place, name): filled(text_of(file), name) for file, place in FILES.items()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(texts)


def text_of(file: str) -> str:
    return (resources.files(__name__) / file).read_text()


def filled(template: str, name: str) -> str:
    return string.Template(template).substitute(name=name, dashed=name.replace("_", "-"))
