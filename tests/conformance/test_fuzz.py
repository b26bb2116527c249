"""The fuzzer finds planted faults, shrinks them, tells them apart, and survives crashes and hangs."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import fuzz_plants
import mlx.core as mx
import pytest
from m2ml_mlx.rules import rules

import m2ml
from m2ml.equivalence.findings import Counts, Finding
from m2ml.equivalence.fuzz import Fuzz, save
from m2ml.equivalence.hunt import Hunt, forget_compiled
from m2ml.equivalence.reproduce import loaded

COMMAND = str(Path(sys.executable).parent / "m2ml")


@pytest.fixture(autouse=True)
def compiled_programs_are_let_go():
    yield
    forget_compiled()


@pytest.fixture
def few_primitives(monkeypatch):
    """Programs of five primitives, so that a fault is met within a few programs."""
    names = ["add", "mul", "neg", "sin", "transpose"]
    monkeypatch.setattr("m2ml.equivalence.hunt.palette", lambda rng, counts, rare: names)
    monkeypatch.setattr("m2ml.equivalence.hunt.SHRINKS", 40)


def hunted(batches=3):
    hunt = Hunt("mlx", seed=1)
    return hunt, [finding for i in range(batches) for finding in hunt.batch(i, size=20)]


def test_a_planted_fault_is_found_once_and_shrunk_to_its_equation(few_primitives, monkeypatch):
    monkeypatch.setitem(rules, "sin", lambda equation, x: (mx.sin(x.astype(mx.float32)) * 0.97).astype(x.dtype))
    hunt, found = hunted()
    keys = [finding.key for finding in found]
    assert keys
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"mlx sin \w+", key) for key in keys), keys
    assert hunt.counts.disagreements > len(keys)
    function, inputs = loaded(found[0].source)
    assert found[0].source.count("bind(") == 1
    with pytest.raises(m2ml.Disagreement, match="sin"):
        m2ml.compare(function, *inputs, backends=["mlx"]).check()


def test_the_reproducer_passes_when_the_fault_is_gone(few_primitives, monkeypatch):
    with monkeypatch.context() as planted:
        planted.setitem(rules, "transpose", fuzz_plants.dropped_tail(rules["transpose"]))
        _, found = hunted()
    assert [finding.key.split()[1] for finding in found] == ["transpose"] * len(found)
    function, inputs = loaded(found[0].source)
    m2ml.compare(function, *inputs, backends=["mlx"]).check()


def test_two_faults_are_told_apart(few_primitives, monkeypatch):
    monkeypatch.setitem(rules, "transpose", fuzz_plants.dropped_tail(rules["transpose"]))
    monkeypatch.setitem(rules, "neg", lambda equation, x: x)
    hunt, told = Hunt("mlx", seed=1), set()
    for i in range(20):
        told |= {finding.key.split()[1] for finding in hunt.batch(i, size=20)}
        if told == {"neg", "transpose"}:
            break
    assert told == {"neg", "transpose"}


def test_an_error_of_the_backend_is_a_finding(few_primitives, monkeypatch):
    def broken(equation, x):
        raise ValueError("no sines today")

    monkeypatch.setitem(rules, "sin", broken)
    _, found = hunted(1)
    assert (found[0].kind, found[0].key.split()[1]) == ("error", "sin")
    assert "no sines today" in found[0].said


@pytest.mark.parametrize("step", ["first_disagreement", "smaller", "source_of"])
def test_a_mistake_after_a_disagreement_loses_nothing(few_primitives, monkeypatch, step):
    def broken(*args, **kwargs):
        raise TypeError("a mistake of ours")

    monkeypatch.setitem(rules, "neg", lambda equation, x: x)
    monkeypatch.setattr(f"m2ml.equivalence.hunt.{step}", broken)
    told = []
    hunt = Hunt("mlx", seed=1, found=told.append)
    found = hunt.batch(0, size=20)
    assert found
    assert all("TypeError: a mistake of ours" in finding.said for finding in found)
    assert {finding.key for finding in told[: len(found)]} == {finding.key for finding in found}
    if step == "source_of":
        assert "neg" in found[0].source
        return
    function, inputs = loaded(found[0].source)
    with pytest.raises(m2ml.Disagreement, match="neg"):
        m2ml.compare(function, *inputs, backends=["mlx"]).check()


def test_ctrl_c_keeps_what_is_not_cut_down_yet(tmp_path):
    stopped = []

    def stop(summary):
        if summary.findings and not stopped:
            stopped.append(signal.raise_signal(signal.SIGINT))

    summary = Fuzz("mlx", seed=1, out=tmp_path, prepare=fuzz_plants.never_cut_down).run(120, on_progress=stop)
    assert list(summary.findings)
    assert sorted(finding.source for finding in summary.findings.values()) == sorted(
        path.read_text() for path in tmp_path.glob("*.py")
    )


def test_a_crash_is_found_located_and_survived(tmp_path):
    summary = Fuzz("mlx", seed=1, out=tmp_path, prepare=fuzz_plants.crashing_sine).run(120, programs=20)
    assert list(summary.findings) == ["mlx crash sin"]
    assert "SIGSEGV" in summary.findings["mlx crash sin"].said
    written = (tmp_path / "mlx_crash_sin.py").read_text()
    assert written.startswith('"""mlx crash sin: the process died of SIGSEGV.')
    assert written.count("bind(") == 1
    loaded(written)


def test_a_hang_is_found_and_ended():
    fuzz = Fuzz("mlx", seed=1, prepare=fuzz_plants.hanging_sine)
    summary = fuzz.run(120, programs=3, patience=3)
    assert next(iter(summary.findings)) == "mlx hang sin"


def test_a_worker_tells_of_a_disagreement(tmp_path):
    fuzz = Fuzz("mlx", seed=1, out=tmp_path, prepare=fuzz_plants.truncated_sine)
    seen = []
    summary = fuzz.run(120, programs=20, on_progress=lambda s: seen.append(s.counts.programs))
    assert seen == sorted(seen)
    assert all(key.startswith("mlx sin") for key in summary.findings)
    assert "programs/s" in str(summary)


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    finding = Finding("mlx dot_general float32 / [2,3]", "disagreement", "", "x = 1\n")
    assert save(finding, tmp_path).name == "mlx_dot_general_float32_2_3.py"
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(Finding("other", "crash", "", "y = 2\n"), tmp_path)
    assert [p.name for p in tmp_path.glob("*.py")] == ["mlx_dot_general_float32_2_3.py"]


def test_long_keys_that_begin_alike_have_files_of_their_own(tmp_path):
    paths = {
        save(Finding(f"mlx only together: {'add ' * 40}{end}", "disagreement", "", "z = 3\n"), tmp_path) for end in "ab"
    }
    assert len(paths) == len(list(tmp_path.glob("*.py"))) == 2


def test_counts_add_up():
    total = Counts()
    for _ in range(3):
        total.add(Counts(programs=1, elements=4, judged=3, primitives={"add": 1}))
    assert (total.programs, total.elements, total.judged, total.primitives["add"]) == (3, 12, 9, 3)


def run_command(*arguments):
    command = [COMMAND, "fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_reports_and_succeeds(tmp_path):
    done = run_command("--backend", "reference", "--programs", "5", "--seed", "1", "--out", str(tmp_path / "found"))
    assert done.returncode == 0, done.stderr
    assert "on reference with seed 1" in done.stdout
    assert "findings: none" in done.stdout
    assert not (tmp_path / "found").exists()


def test_an_unknown_backend_is_refused_in_one_sentence():
    done = run_command("--backend", "abacus", "--minutes", "0.1")
    assert done.returncode == 2
    assert "there is no backend 'abacus'" in done.stderr


def test_ctrl_c_ends_with_the_summary(tmp_path):
    command = [COMMAND, "fuzz", "--backend", "reference", "--minutes", "5"]
    with subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "programs of" in said
