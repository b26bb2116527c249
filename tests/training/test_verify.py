"""``m2ml verify``: what it runs, what it makes of it, and what it does not tell, with backends and commands made up."""

import getpass
import json
import os
import platform
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m2ml.cli import app, verification
from m2ml.cli.verification import Ran, Step, outcome_of, run_command
from m2ml.cli.verify import verify
from m2ml.cli.verify_report import Outcome, anonymous, new_report
from m2ml.plugins import registry

MPS, METAL = "jax-mps 0.11.1", "metaljax 0.11.9"
CHOOSE = {MPS: {"CHOOSE": "jax-mps"}, METAL: {"CHOOSE": "metaljax"}}


class Machine:
    """A Mac whose commands are made up: ``fails`` says which, by a word of the command and how."""

    def __init__(self, monkeypatch, **fails):
        self.fails, self.commands = fails, []
        monkeypatch.setattr(registry, "names", lambda: ("cpu", "mlx", "jax_metal", "reference"))
        monkeypatch.setattr(registry, "variants", lambda name: CHOOSE if name == "jax_metal" else {})

    def __call__(self, command, environment, limit):
        text = " ".join(map(str, command))
        self.commands.append((text, dict(environment)))
        if "describe" in text:
            return self.describe(text, environment)
        for word, ran in self.fails.items():
            if word in text or word in environment.values():
                return ran
        if "conformance" in text:
            results = [{"part": "ops", "name": n, "outcome": o, "message": m} for n, o, m in RESULTS]
            Path(command[command.index("--json") + 1]).write_text(json.dumps({"results": results}))
        elif "demo" in text:
            folder, name = Path(command[command.index("--out") + 1]), command[command.index("--backend") + 1]
            folder.mkdir(parents=True)
            found = {"device": "Apple M4", "steps": 400, "steps_per_second": 99.5, "share_of_bound": 0.02}
            models = [
                {"task": "gpt", "backends": {name: {**found, "within_bound": True, "losses": [1.0]}}, "failures": {}}
            ]
            (folder / "report.json").write_text(json.dumps({"models": models}))
        return Ran(0, 12.34, f"ratio 1.02 reached, in {Path.home()}")

    def describe(self, text, environment):
        if environment.get("CHOOSE") == "metaljax" and "metaljax" in self.fails:
            return Ran(0, 1, json.dumps({"devices": [], "kinds": [], "reason": "metaljax 0.11.9 needs macOS 27.0"}))
        gpu = "mlx" in text or "jax_metal" in text
        return Ran(
            0, 1, "noise\n" + json.dumps({"devices": ["Apple M4"], "kinds": ["gpu" if gpu else "cpu"], "reason": ""})
        )


RESULTS = [("rope values", "passed", ""), ("rope laws", "passed", ""), ("eig", "gap", "it has none")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "bench_calls.py").write_text("")
    return tmp_path / "report"


def verified(run, folder, *asked, quick=False):
    report = verify(list(asked), folder, quick, Path("benchmarks"), run)
    return report, json.loads((folder / "verify.json").read_text()), (folder / "verify.md").read_text()


def test_every_provider_and_every_gpu_is_verified_once(monkeypatch, folder):
    run = Machine(monkeypatch)
    report, facts, text = verified(run, folder)
    assert [s["label"] for s in facts["subjects"]] == ["mlx", f"jax_metal by {MPS}", f"jax_metal by {METAL}"]
    assert all([s["name"] for s in subject["steps"]] == ["conformance kit", "demo"] for subject in facts["subjects"])
    chosen = [environment for text, environment in run.commands if "conformance jax_metal" in text]
    assert chosen == [{"CHOOSE": "jax-mps"}, {"CHOOSE": "metaljax"}]
    kit, demo = facts["subjects"][0]["steps"]
    assert kit["facts"] == {"passed": 2, "gap": 1, "failures": []}
    assert demo["facts"]["gpt"]["within_bound"] is True
    assert [b["name"] for b in facts["benchmarks"]] == ["bench_calls"]
    assert report.ok
    assert facts["ok"]
    assert facts["complete"]
    assert text.startswith(f"# m2ml verify, {facts['date']}: passed\n")
    assert "| conformance kit | passed | 12.3 | passed: 2; gap: 1 |" in text
    assert "ratio 1.02 reached" in text


def test_what_fails_costs_itself_and_is_told(monkeypatch, folder):
    died = Ran(-11, 3.0, "", "line\nzsh: segmentation fault")
    report, facts, text = verified(Machine(monkeypatch, **{"demo-mlx": died}), folder)
    (mlx, mps, _) = facts["subjects"]
    assert mlx["steps"][1]["outcome"] == "failed"
    assert mlx["steps"][1]["said"] == "died of SIGSEGV; its last words: zsh: segmentation fault"
    assert [step["outcome"] for step in mps["steps"]] == ["passed", "passed"]
    assert not report.ok
    assert "not passed" in text.splitlines()[0]


def test_failed_checks_are_listed(monkeypatch, folder):
    monkeypatch.setitem(globals(), "RESULTS", [("rope values", "failed", "off by\n3 bounds")])
    _, facts, text = verified(Machine(monkeypatch), folder, "mlx")
    assert facts["subjects"][0]["steps"][0]["facts"]["failures"] == ["ops/rope values: off by\n3 bounds"]
    assert "- ops/rope values: off by 3 bounds" in text


def test_a_provider_that_does_not_start_is_in_the_report(monkeypatch, folder):
    report, facts, text = verified(Machine(monkeypatch, metaljax=Ran(0, 1)), folder)
    last = facts["subjects"][-1]
    assert last["reason"] == "metaljax 0.11.9 needs macOS 27.0"
    assert "Not run: metaljax 0.11.9 needs macOS 27.0" in text
    assert not report.ok


def test_a_report_is_there_after_every_step(monkeypatch, folder):
    class Panic(BaseException):
        """The machine goes down."""

    run = Machine(monkeypatch)

    def until_the_demo(command, environment, limit):
        if "demo" in " ".join(map(str, command)):
            raise Panic
        return run(command, environment, limit)

    with pytest.raises(Panic):
        verify([], folder, False, Path("benchmarks"), until_the_demo)
    facts = json.loads((folder / "verify.json").read_text())
    assert not facts["complete"]
    assert facts["subjects"][0]["steps"][0]["outcome"] == "passed"
    assert "not finished" in (folder / "verify.md").read_text()


def test_quick_runs_less(monkeypatch, folder):
    run = Machine(monkeypatch)
    _, facts, _ = verified(run, folder, "mlx", quick=True)
    assert facts["benchmarks"] == []
    assert any("--part contract" in text and "--examples 3" in text for text, _ in run.commands)
    assert any("--gpt-steps 20" in text for text, _ in run.commands)


def test_a_step_that_hangs_is_stopped_with_all_it_started():
    sleep = "import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
    outcome = outcome_of(Step("hangs", [sys.executable, "-c", child], 2.0), {}, run_command)
    assert (outcome.outcome, outcome.said) == ("stopped", "stopped after 2 s")
    assert outcome.seconds < 20


def test_a_step_that_leaves_nothing_to_read_says_so():
    step = Step(
        "reads", [sys.executable, "-c", "print('{'); raise SystemExit(3)"], 30, lambda ran: json.loads(ran.output)
    )
    outcome = outcome_of(step, {}, run_command)
    assert outcome.outcome == "failed"
    assert outcome.said.startswith("ended with exit code 3")
    assert outcome.facts["unreadable"].startswith("JSONDecodeError")


def test_nothing_personal_is_told(monkeypatch, folder):
    monkeypatch.setenv("M2ML_CACHE", str(Path.home() / "cache"))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada.lovelace")
    monkeypatch.setattr(platform, "node", lambda: "Adas-MacBook")
    word = f"in {Path.cwd()}/x, {sys.prefix}/lib, {Path.home()}/y by ada.lovelace on Adas-MacBook, not Adas-MacBooks"
    assert anonymous({"a": [word]}) == {"a": ["in ./x, <environment>/lib, ~/y by <user> on <host>, not Adas-MacBooks"]}
    _, _, text = verified(Machine(monkeypatch), folder)
    whole = text + (folder / "verify.json").read_text()
    for private in (str(Path.home()) + "/", "hunter2", "ada.lovelace", "Adas-MacBook", str(Path.cwd())):
        assert private not in whole


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch, folder):
    monkeypatch.setattr(verification, "find_subjects", lambda asked, run: [])
    done = CliRunner().invoke(app, ["verify", "--out", str(folder)])
    assert done.exit_code == 2
    assert "no backend here has a GPU; name one with --backend" in done.output
    assert not folder.exists()


def test_an_unknown_backend_is_refused(folder):
    done = CliRunner().invoke(app, ["verify", "--backend", "nope", "--out", str(folder)])
    assert done.exit_code == 2
    assert "there is no backend 'nope'" in done.output


def test_the_workflow_installs_extras_that_exist_and_names_backends():
    import re
    import tomllib

    root = Path(__file__).parents[2]
    text = (root / ".github" / "workflows" / "apple-gpu.yml").read_text()
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    providers, backends = (set(re.findall(rf"{word}: ([\w-]+)\n", text)) for word in ("provider", "backend"))
    assert providers <= set(extras)
    assert {"demo", "kit"} <= set(extras)
    assert backends <= set(registry.names())
    assert "pull_request" not in text


def test_the_hardware_and_the_versions_of_this_machine_are_known():
    report = new_report()
    assert report.hardware["cores"] == os.cpu_count()
    assert report.versions["jax"]
    assert not report.ok, "a report of nothing has not passed"
    report.benchmarks.append(Outcome("x", "passed"))
    assert report.ok


def test_a_real_backend_is_described_in_a_process_of_its_own():
    (subject,) = verification.find_subjects(["reference"], run_command)
    assert (list(subject.devices), subject.reason) == (["NumPy float64"], "")
    (absent,) = verification.find_subjects(["jax_metal"], run_command)
    assert "an Apple GPU needs macOS" in absent.reason or absent.devices
