from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_tasks import BACKENDS, WORDS
from typer.testing import CliRunner

from m2ml.cli import app
from m2ml.cli.console import Bar
from m2ml.cli.settings import PRESETS, Preset
from m2ml.training import Agreement, Task, checkpoint

TINY_GPT = ["--layers", "1", "--heads", "2", "--embed-dim", "8", "--context", "8", "--batch", "2"]
TINY_CNN = ["--features", "2", "--hidden-dim", "4", "--batch", "4"]


def run(*args: object, code: int = 0) -> str:
    """What ``m2ml *args`` prints; ``code`` is the exit code it must end with."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def refused(*args: object) -> str:
    """The one line with which ``m2ml *args`` is refused."""
    lines = run(*args, code=2).strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# Help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], ["demo", "train", "backends", "doctor", "explain"]),
        (["demo"], ["--gpt-steps", "on every backend that runs here", "exits with 1"]),
        (["train"], ["gpt", "cnn", "resume"]),
        (["train", "gpt"], ["--text", "--size", "--resume", "--checkpoint-every", "m2ml train gpt --text novel.txt"]),
        (["train", "cnn"], ["--images", "--features", "train-images-idx3-ubyte.gz", "a fifth is held out"]),
        (["backends"], ["the reason for those that do not"]),
        (["doctor"], ["versions"]),
        (["explain"], ["MODULE:FUNCTION", "--arg", "m2ml explain jax.nn:softmax"]),
    ],
)
def test_every_command_explains_itself(command, said):
    text = " ".join(run(*command, "--help").split())
    for phrase in said:
        assert phrase in text, phrase


def test_the_command_line_imports_no_heavy_library_of_its_own():
    program = (
        "import sys, m2ml; before = set(sys.modules); import m2ml.cli;"
        " print([n for n in ('jax', 'flax', 'optax', 'mlx', 'matplotlib', 'safetensors', 'sklearn')"
        " if n in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Training --------------------------------------------------------------------------------------------


def gpt_args(text: Path, out: Path, *, backend: str = "cpu") -> list[object]:
    return ["train", "gpt", "--text", text, *TINY_GPT, "--steps", 4, "--backend", backend, "--out", out]


def losses_of(folder: Path) -> list[float]:
    return json.loads((folder / "report.json").read_text())["losses"]


@pytest.fixture(scope="module", params=BACKENDS)
def finished(request, tmp_path_factory) -> tuple[Path, str, str]:
    """A finished run on each backend: its folder, what it printed, and the backend."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "words.txt").write_text(WORDS)
    return folder / "run", run(*gpt_args(folder / "words.txt", folder / "run", backend=request.param)), request.param


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished[0].parent, tmp_path / "copy")
    record = tmp_path / "copy" / "run" / checkpoint.RECORD
    record.write_text(record.read_text().replace(str(finished[0].parent), str(tmp_path / "copy")))
    return tmp_path / "copy" / "run"


def test_train_gpt_writes_a_checkpoint_a_picture_a_report_and_text(finished):
    out, said, backend = finished
    assert "The model writes:" in said
    assert f"wrote {out / 'checkpoint.json'}, {out / 'loss.png'} and {out / 'report.json'}" in said
    report = json.loads((out / "report.json").read_text())
    assert (report["backend"], report["step"], len(report["losses"]), len(report["sample"])) == (backend, 4, 4, 300)
    assert np.isfinite(report["losses"]).all()
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_a_run_at_a_checkpoint_from_which_it_goes_on_bit_for_bit(
    finished, tmp_path, text_file, monkeypatch
):
    whole, _, backend = finished
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)  # ignored in a job that a shell put in the background
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "chunk", lambda bar, chunk: signal.raise_signal(signal.SIGINT))
        said = run(*gpt_args(text_file, out, backend=backend), "--sample", 0)
    assert f"stopped at step 1; go on with: m2ml train gpt --resume {out}" in said
    assert losses_of(out) == losses_of(whole)[:1]
    run("train", "gpt", "--resume", out, "--backend", backend, "--sample", 0)
    assert losses_of(out) == losses_of(whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_can_be_made_longer(copied):
    before = losses_of(copied)
    run("train", "gpt", "--resume", copied, "--steps", 6, "--sample", 0)
    record = checkpoint.read_record(copied)
    assert (record.step, record.run["optimizer"]["steps"]) == (6, 6)
    assert losses_of(copied)[:4] == before
    assert "steps 6 to 6" in run("train", "gpt", "--resume", copied, "--sample", 0)


def test_what_a_checkpoint_settles_cannot_be_changed(copied, images_file):
    text = copied.parent / "words.txt"
    resume = ["train", "gpt", "--resume", copied]
    assert "embed_dim is 8 in the checkpoint and 16 in the options" in refused(*resume, "--embed-dim", 16)
    assert "seed is 0 in the checkpoint and 1 in the options" in refused(*resume, "--seed", 1)
    assert "learning_rate is" in refused(*resume, "--learning-rate", 0.5)
    assert "is at step 4, past the 3 asked for" in refused(*resume, "--steps", 3)
    assert "is of a gpt, not a cnn" in refused("train", "cnn", "--images", images_file, "--resume", copied)
    assert "holds a checkpoint already" in refused("train", "gpt", "--text", text, "--out", copied)
    text.write_text("another text that is long enough to train on")
    assert "was trained on words.txt, which is not what words.txt holds now" in refused(*resume)


def test_a_damaged_checkpoint_is_one_sentence(copied, tmp_path):
    arrays = next(copied.glob("*.safetensors"))
    arrays.write_bytes(arrays.read_bytes()[:-9])
    assert "are damaged: the file is not the one that was written" in refused("train", "gpt", "--resume", copied)
    assert "holds no checkpoint" in refused("train", "gpt", "--resume", tmp_path / "nowhere")


def test_train_cnn_says_its_accuracy_and_takes_a_size(tmp_path, images_file):
    out = tmp_path / "run"
    args = ["--images", images_file, "--size", "tiny", "--batch", 8, "--steps", 30, "--log-every", 10, "--out", out]
    said = run("train", "cnn", *args)
    assert "step      20  loss" in said
    report = json.loads((out / "report.json").read_text())
    assert f"test accuracy: {report['test_accuracy']:.1%} of 8 images" in said
    assert report["test_accuracy"] == 1
    assert report["model"]["features"] == [8, 16]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train", "gpt", "--text", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["train", "gpt", "--text", "{text}", "--context", 10000], "too few for one sequence of 10000"),
        (["train", "gpt", "--text", "{text}", "--heads", 3, "--embed-dim", 8], "multiple of heads; got 8 for 3"),
        (
            ["train", "gpt", "--text", "{text}", "--size", "huge"],
            "no size huge; sizes of a gpt are tiny, small, medium",
        ),
        (["train", "gpt", "--text", "{text}", "--backend", "abacus"], "there is no backend 'abacus'; registered are"),
        (["train", "cnn", "--images", "{text}"], "must be an .npz, or an IDX file"),
        (["train", "cnn", "--images", "{images}", "--features", "2;3"], "--features is written like 16,32; got 2;3"),
        (["train", "cnn", "--images", "{images}", "--features", "2,2,2,2"], "8x8 cannot be halved 4 times"),
        (["train", "cnn", "--images", "{images}", "--batch", 33], "32 images to train on, too few for a batch of 33"),
        (["demo", "--backend", "abacus"], "there is no backend 'abacus'"),
        (["demo", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, text_file, images_file, args, said):
    filled = [str(arg).format(text=text_file, images=images_file) for arg in args]
    out = [] if "demo" in args else ["--out", tmp_path / "run"]
    assert said in refused(*filled, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--layers", "many"], ["--batch", "-1"], ["--dropout", "1.5"]])
def test_numbers_out_of_range_are_usage_errors(wrong):
    assert f"Invalid value for '{wrong[0]}'" in run("train", "gpt", *wrong, code=2)


def test_a_loss_that_diverges_is_said_and_ends_the_run(tmp_path, images_file):
    args = ["--images", images_file, *TINY_CNN, "--learning-rate", 1e30, "--steps", 30, "--out", tmp_path]
    said = run("train", "cnn", *args, code=2)
    assert re.search(r"the loss became (nan|inf) at step \d+; train with a smaller learning rate", said)


# Demo ------------------------------------------------------------------------------------------------


@pytest.fixture
def _smaller_models(monkeypatch):
    gpt = Preset({"layers": 1, "heads": 2, "embed_dim": 8, "context": 8}, 3, 2, 1e-3)
    monkeypatch.setitem(PRESETS["gpt"], "tiny", gpt)
    monkeypatch.setitem(PRESETS["cnn"], "tiny", Preset({"features": (2,), "hidden_dim": 4}, 3, 4, 1e-3))


@pytest.mark.usefixtures("_smaller_models")
def test_a_short_demo_trains_on_every_backend_and_compares_them(tmp_path, text_file, images_file):
    out = tmp_path / "demo"
    args = ["--text", text_file, "--images", images_file, "--gpt-steps", 3, "--cnn-steps", 3, "--compared-steps", 2]
    said = run("demo", *args, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert [model["task"] for model in report["models"]] == ["gpt", "cnn"]
    for model in report["models"]:
        assert sorted(model["backends"]) == BACKENDS
        assert model["failures"] == {}
        assert len(model["allowed_difference"]) == 2
        for name, row in model["backends"].items():
            assert row["steps"] == len(row["losses"]) == (2 if name == "reference" else 3)
            assert row["within_bound"] is (None if name == "reference" else True)
            assert name in said
    assert len(report["models"][0]["result"]["text"]) == 240
    assert said.count("on words[b].txt") == 2
    assert 0 <= report["models"][1]["result"]["test_accuracy"] <= 1
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {out / 'loss.png'} and {out / 'report.json'}" in said


@pytest.mark.usefixtures("_smaller_models")
def test_a_demo_in_which_a_backend_fails_or_disagrees_says_so_and_fails(tmp_path, text_file, images_file, monkeypatch):
    """The GPT breaks on one backend, and the bound of the CNN's curve is made so small that nothing fits in it."""
    real = Task.train_step.func

    class Broken:
        def __init__(self, step):
            self.program, self.on = step.program, lambda name: fail if name == "cpu" else step.on(name)

    def fail(state, batch):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(
        Task, "train_step", property(lambda task: Broken(real(task)) if task.name == "gpt" else real(task))
    )
    monkeypatch.setattr(Agreement, "share", lambda agreement, losses: 1.5)
    args = ["--text", text_file, "--images", images_file, "--gpt-steps", 1, "--cnn-steps", 1, "--backend", "cpu"]
    said = run("demo", *args, "--out", tmp_path / "demo", code=1)
    assert "failed: out of luck" in said
    assert re.search(r"cpu .* NO \(150%\)", said)
    gpt, cnn = json.loads((tmp_path / "demo" / "report.json").read_text())["models"]
    assert gpt["failures"] == {"cpu": "out of luck"}
    assert gpt["result"]["by"] == "reference"
    assert cnn["backends"]["cpu"]["within_bound"] is False


# Looking around --------------------------------------------------------------------------------------


def test_backends_and_doctor_name_every_backend():
    listed, examined = run("backends"), run("doctor")
    for name in BACKENDS:
        assert name in listed
        assert name in examined
    assert "(default)" in listed


def test_explain_says_how_a_function_runs():
    said = run("explain", "jax.nn:softmax", "--arg", "float32[3,4]", "--backend", "reference")
    assert "runs on reference" in said
    assert "exp 1" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["jax.nn"], "a function is named as MODULE:FUNCTION; got jax.nn"),
        (["jax.nn:nothing"], "jax.nn:nothing was not found"),
        (["jax.numpy:sin"], "jax.numpy:sin does not take these arguments"),
        (["jax.numpy:matmul", "--arg", "float32[2,3]", "--arg", "float32[2,3]"], "got (3,) and (2,)"),
        (["nowhere.at.all:f"], "nowhere.at.all:f was not found"),
        (
            ["jax.nn:softmax", "--arg", "float32(3)"],
            r"an argument's type is written like float32[8,64]; got float32(3)",
        ),
        (
            ["jax.nn:softmax", "--arg", "float31[3]"],
            r"an argument's type is written like float32[8,64]; got float31[3]",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(args, said):
    assert said in refused("explain", *args)
