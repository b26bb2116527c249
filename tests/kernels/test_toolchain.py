"""Compiling C++ on this machine: found once, made once, never stale, never half written."""

import ctypes
import json
import os
import subprocess
import sys

import pytest
from m2ml_kernels import CompileError, CompilerMissing, compile_program, compile_shared, compilers, find_compiler
from m2ml_kernels.toolchain import first_error

ANSWER = '#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a header, and a cache of its own."""
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path / "cache"))
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    return tmp_path


def answer(built):
    return ctypes.CDLL(str(built.path)).answer()


def test_a_second_call_finds_the_object(folder):
    first = compile_shared(ANSWER, include=[folder], name="answer")
    second = compile_shared(ANSWER, include=[folder], name="answer")
    assert answer(first) == 42
    assert (first.cached, second.cached) == (False, True)
    assert (second.path, second.seconds) == (first.path, first.seconds)
    assert first.seconds > 0
    assert first.path.parent == folder / "cache" / "objects"


@pytest.mark.parametrize("what", ["source", "flag", "header"])
def test_a_change_is_another_object(folder, what):
    source = folder / "answer.cc"
    source.write_text(ANSWER)
    before = compile_shared(source, include=[folder], name="answer")
    if what == "source":
        source.write_text(ANSWER.replace("ANSWER;", "ANSWER + 1;"))
    elif what == "header":
        (folder / "answer.h").write_text("#define ANSWER 4711\n")
    after = compile_shared(source, include=[folder], flags=["-DANSWER=7"][: what == "flag"], name="answer")
    assert not after.cached
    assert after.path != before.path


def test_a_header_that_changes_back_finds_the_first_object(folder):
    built = [compile_shared(ANSWER, include=[folder], name="answer")]
    for text in ("#define ANSWER 4711\n", "#define ANSWER 42\n"):
        (folder / "answer.h").write_text(text)
        built.append(compile_shared(ANSWER, include=[folder], name="answer"))
    assert [one.cached for one in built] == [False, False, True]
    assert [answer(one) for one in built] == [42, 4711, 42]


@pytest.mark.parametrize("victim", ["object", "record", "headers"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_entry_is_built_again(folder, victim, damage):
    built = compile_shared(ANSWER, include=[folder], name="answer")
    (headers,) = built.path.parent.glob("*.headers")
    path = {"object": built.path, "record": built.path.with_name(built.path.name + ".json"), "headers": headers}[victim]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    again = compile_shared(ANSWER, include=[folder], name="answer")
    assert not again.cached
    assert answer(again) == 42
    assert compile_shared(ANSWER, include=[folder], name="answer").cached


def test_two_processes_build_the_same_thing_at_once(folder):
    program = (
        "import ctypes, sys; from m2ml_kernels import compile_shared;"
        f"built = compile_shared({ANSWER!r}, include=[{str(folder)!r}], name='answer');"
        "assert ctypes.CDLL(str(built.path)).answer() == 42; print(built.cached)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in started) == ["False", "True"]
    assert not list((folder / "cache" / "objects").glob("building-*"))


def test_a_program_runs(folder):
    built = compile_program('#include <cstdio>\nint main() { std::puts("here"); }\n', name="hello")
    assert subprocess.run([built.path], capture_output=True, text=True, check=True).stdout == "here\n"
    assert json.loads(built.path.with_name(built.path.name + ".json").read_text())["compiler"] == str(built.compiler)


def test_an_error_names_the_first_line_that_is_wrong(folder):
    with pytest.raises(CompileError, match=r"^broken does not compile: broken\.cc:2: .*'?undeclared'?") as caught:
        compile_shared("int ok;\nint wrong = undeclared;\n", name="broken")
    assert "undeclared" in caught.value.log
    with pytest.raises(CompileError, match=r"absent\.h"):
        compile_shared("#include <absent.h>\n", name="broken")


def test_an_error_of_the_linker_has_no_line():
    assert "undefined reference to `f()'" in first_error(
        "/usr/bin/ld: x.o: undefined reference to `f()'\ncollect2: error"
    )
    assert first_error("") == "no reason given"


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_flags_that_flush_denormals_of_the_process_are_refused(folder, flag):
    with pytest.raises(ValueError, match=f"answer: {flag} turns denormals off in the whole process"):
        compile_shared(ANSWER, flags=[flag], include=[folder], name="answer")


def test_no_compiler_at_all(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("M2ML_CXX", raising=False)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        CompilerMissing, match=r"neither \$M2ML_CXX, nor clang\+\+, g\+\+, c\+\+ on PATH, nor the package"
    ):
        compile_shared(ANSWER, include=[folder], name="answer")


def test_a_compiler_that_is_too_old_is_passed_over(folder, monkeypatch):
    """As Clang 14 and GCC 11 are, which know no _Float16 on x86-64."""
    old = folder / "clang++"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo clang version 14.0.6 && exit 0\nexit 1\n')
    old.chmod(0o755)
    monkeypatch.delenv("M2ML_CXX", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert find_compiler().command != (str(old),)
    compile_shared(ANSWER, include=[folder], name="answer")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match=r"on PATH \(clang version 14\.0\.6: too old, GCC 12 or Clang 15"):
        find_compiler()


def test_the_compiler_that_was_named_must_answer(monkeypatch):
    monkeypatch.setenv("M2ML_CXX", "no-such-compiler --flag")
    with pytest.raises(CompilerMissing, match=r"\$M2ML_CXX is 'no-such-compiler --flag', which does not answer"):
        find_compiler()


def test_native_code_belongs_to_one_processor(folder, monkeypatch):
    first = compile_shared(ANSWER, flags=["-march=native"], include=[folder], name="answer")
    from m2ml_kernels import toolchain

    monkeypatch.setattr(toolchain, "host_cpu", lambda: "another processor")
    other = compile_shared(ANSWER, flags=["-march=native"], include=[folder], name="answer")
    assert not other.cached
    assert other.path != first.path
