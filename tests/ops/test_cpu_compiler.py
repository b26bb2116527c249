"""C++ kernels on a user's machine: a compiler that is missing, one that fails, two processes that both come first."""

import os
import subprocess
import sys

import pytest
from m2ml_cpu import engine

import m2ml

#: What a user does, in a process of its own: run an op, ask what ran it, and ask the doctor.
PROGRAM = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "ziglang" else find(name, *more)
import m2ml, numpy as np
from m2ml import ops

norm = m2ml.jit(lambda x: ops.rms_norm(x), backend="cpu")
print(float(np.asarray(norm(np.ones((2, 4), np.float32))).sum()))
print(norm.explain(np.ones((2, 4), np.float32)))
print(m2ml.doctor())
"""


def start(folder, **environment):
    environment = os.environ | {"M2ML_CACHE": str(folder), "M2ML_CXX": ""} | environment
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each process printed; all run at once."""
    folder = tmp_path_factory.mktemp("compilers")
    broken = folder / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\necho "no license left" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    (folder / "empty").mkdir()
    shared = folder / "shared"
    running = {
        "broken": start(folder / "cache of broken", M2ML_CXX=str(broken)),
        "missing": start(folder / "cache of missing", PATH=str(folder / "empty")),
        "first": start(shared),
        "second": start(shared),
    }
    found = {}
    for name, process in running.items():
        found[name], _ = process.communicate(timeout=300)
        assert process.returncode == 0, found[name]
        assert found[name].splitlines()[0].startswith("7.99999") or found[name].startswith("8.0")
    assert not list((shared / "objects").glob("building-*"))
    assert len(list((shared / "objects").glob("rms_norm_cc-*.so"))) == 1
    return found


def test_two_processes_may_come_first_at_once(said):
    for name in ("first", "second"):
        assert "rms_norm: kernel cpp/rms_norm" in said[name]


def test_the_doctor_shows_the_compiler_the_times_and_the_folder(said):
    assert "C++ kernels: " in said["first"]
    assert "/shared/objects" in said["first"]
    assert "  compiled: rms_norm.cc " in said["first"]
    assert "compiled on first use: " in said["first"]
    assert "attention.cc" in said["first"]
    assert "/shared, with 0 tuned calls of ops" in said["first"]


def test_a_compiler_that_fails_leaves_the_definition(said):
    assert "rms_norm: its definition; cpp/rms_norm: rms_norm.cc does not compile: no license left" in said["broken"]
    expected = "C++ kernels do not compile, so ops run their definitions: probe does not compile: no license left"
    assert expected in said["broken"]


def test_no_compiler_leaves_the_definition(said):
    assert "rms_norm: its definition; cpp/rms_norm: no C++ compiler was found: neither $M2ML_CXX" in said["missing"]
    assert "so ops run their definitions: no C++ compiler was found" in said["missing"]
    assert "install one (pip install ziglang)" in said["missing"]


def test_a_folder_that_cannot_be_written_leaves_the_definition(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path / "file"))
    notes = " ".join(m2ml.doctor().notes["cpu"])
    assert "probe cannot be kept in" in notes
    assert "set $M2ML_CACHE to another folder" in notes


@pytest.mark.parametrize(
    ("setting", "tunables", "told"),
    [
        ("always [madvise] never", "", True),
        ("always [madvise] never", "glibc.malloc.check=0:glibc.malloc.hugetlb=1", False),
        ("[always] madvise never", "", False),
    ],
)
def test_the_doctor_says_who_has_to_ask_for_huge_pages(tmp_path, monkeypatch, setting, tunables, told):
    (tmp_path / "enabled").write_text(f"{setting}\n")
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    said = engine.huge_pages(tmp_path / "enabled")
    assert [("glibc.malloc.hugetlb=1" in line) for line in said] == [True] * told
    assert not engine.huge_pages(tmp_path / "missing")
