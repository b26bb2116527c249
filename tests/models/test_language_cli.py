"""The commands on a tiny model with a tokenizer of whole words."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import tiny_checkpoints
import tokenizers
from rich.console import Console
from tokenizers import models, pre_tokenizers
from typer.testing import CliRunner, Result

from m2ml.cli import app
from m2ml.cli.page import Page
from m2ml.models.tokenizer import Tokenizer, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny_checkpoints.write(tmp_path / "model", tiny_checkpoints.golden()["qwen3"])
    rust = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.content }} {% endfor %}w1"
    saved(Tokenizer(rust, frozenset({60}), None, template, {}), folder)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_generate_writes_text_json_and_a_prompt_cache(folder: Path, tmp_path: Path) -> None:
    asked = ("generate", folder, "--prompt", "w3 w4", "--max-tokens", 3)
    plain = run(*asked)
    assert plain.exit_code == 0, plain.output
    assert plain.stdout.startswith("w3 w4")
    assert "2 tokens read, 3 written" in plain.stderr
    found = json.loads(run(*asked, "--json", "--prompt-cache", tmp_path / "kept").stdout)
    assert len(found["results"][0]["tokens"]) == found["tokens"] == 3
    assert found["prompt_tokens"] == 2
    again = json.loads(run(*asked, "--json", "--prompt-cache", tmp_path / "kept").stdout)
    assert again["results"] == found["results"]
    stopped = json.loads(run(*asked, "--json", "--stop", found["results"][0]["text"].split()[1]).stdout)
    assert stopped["results"][0]["ended"] == "stop"


def test_a_converted_model_writes_the_same(folder: Path, tmp_path: Path) -> None:
    assert run("convert", folder, tmp_path / "again").exit_code == 0
    asked = ("--prompt", "w3 w4", "--max-tokens", 3, "--json")
    first, second = (json.loads(run("generate", path, *asked).stdout) for path in (folder, tmp_path / "again"))
    assert first["results"] == second["results"]


def test_chat_answers_once(folder: Path) -> None:
    answer = run("chat", folder, "--prompt", "w7", "--max-tokens", 2)
    assert answer.exit_code == 0, answer.output
    assert "2 written" in answer.stderr


def test_a_terminal_shows_the_speed_under_the_text_until_it_is_whole() -> None:
    screen = io.StringIO()
    page = Page("9 tokens/s", Console(file=screen, force_terminal=True, width=60), together=True)
    with page:
        page.write("one line\nand ano")
        assert "one line\n" in screen.getvalue()
        assert "and ano\n" in screen.getvalue()
        assert "[9 tokens/s]" in screen.getvalue()
        page.write("ther")
    below = screen.getvalue().rpartition("\x1b[2K")[2]  # what stands there when the display has been cleared
    assert below.endswith("and another")
    assert "tokens/s" not in below


def test_mistakes_get_one_sentence(folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("generate", tmp_path / "nowhere", "--prompt", "w1"), "m2ml: there is no model at"),
        (("generate", folder, "--prompt", "w1", "--top-p", 2), "m2ml: top_p is 2.0; it must be above 0"),
        (("generate", folder, "--prompt", ""), "m2ml: prompt 0 has no tokens"),
        (("quantize", folder, tmp_path / "out", "--bits", 7), "m2ml: quantize: bits is 7"),
        (("convert", folder, folder), "exists; give a folder that does not"),
        (("convert", folder, tmp_path / "out", "--dtype", "int8"), "m2ml: weights are written in float32"),
    ):
        found = run(*arguments)
        assert found.exit_code == 2, found.output
        assert said in found.stderr
        assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_readme_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = (e for e in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "m2ml.generation" in e)
    (tmp_path / "models").mkdir()
    folder.rename(tmp_path / "models" / "qwen3")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    written = capsys.readouterr().out.splitlines()
    assert len(written) == 64
    assert {line.split()[0] for line in written} == {"0", "1"}
