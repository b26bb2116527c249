"""``m2ml compare``: exit codes, arguments of every kind, files, one sentence for what it cannot do."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from m2ml.cli import app
from m2ml.plugins import registry


def run(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_agreement_ends_with_zero_and_says_each_output():
    done = run("jax.nn:softmax", "--arg", "float32[4,9]", "--grad")
    assert done.exit_code == 0, done.output
    for line in ("softmax against the reference", "  cpu: agrees", "  mlx: agrees", "    gradient of x float32:"):
        assert line in done.stdout


def test_disagreement_ends_with_one_and_names_the_equation(monkeypatch):
    cpu = registry.get("cpu")
    right = cpu.compile
    monkeypatch.setattr(cpu, "compile", lambda program: lambda *args: [y + 1 for y in right(program)(*args)])
    done = run("jax.numpy:sin", "--arg", "float32[3]", "--backend", "cpu")
    assert done.exit_code == 1
    assert "cpu: DISAGREES" in done.stdout
    assert "sin(float32[3])" in done.stdout


def test_a_backend_that_fails_ends_with_one(monkeypatch):
    def fail(program):
        raise RuntimeError("the engine broke")

    monkeypatch.setattr(registry.get("cpu"), "compile", fail)
    done = run("jax.numpy:sin", "--arg", "float32[3]", "--backend", "cpu")
    assert done.exit_code == 1
    assert "cpu: RuntimeError: the engine broke" in done.stdout


def test_arguments_are_types_files_and_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_functions.py").write_text(
        "import jax\n\ndef scaled(key, x, n, flags, z):\n"
        "    return jax.random.normal(key, (3,)) * x[n] * flags, z.real\n"
    )
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32))
    words = ("--arg", "key", "--arg", "x.npy", "--arg", "int32", "--arg", "bool[3]", "--arg", "complex64[2]")
    done = run("cli_functions:scaled", *words, "--backend", "cpu")
    assert done.exit_code == 0, done.output


def test_the_seed_chooses_the_numbers(tmp_path):
    def values(seed):
        file = tmp_path / f"{seed}.json"
        assert run("jax.numpy:exp", "--arg", "float32[5]", "--seed", seed, "--json", file).exit_code == 0
        return json.loads(file.read_text())["backends"]["cpu"]["outputs"][0]["classes"][0]["expected"]

    assert values(0) == values(0) != values(1)


def test_json_and_picture_are_written(tmp_path):
    done = run("jax.numpy:sin", "--arg", "float32[3]", "--json", tmp_path / "r.json", "--picture", tmp_path / "r.png")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is True
    assert (tmp_path / "r.png").read_bytes()[1:4] == b"PNG"


def test_an_isolated_backend_agrees():
    done = run("jax.numpy:sin", "--arg", "float32[3]", "--backend", "cpu", "--isolated", "--time-limit", 120)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jax.numpy"], "a function is named as MODULE:FUNCTION; got jax.numpy"),
        (["jax.numpy:nope"], "jax.numpy:nope was not found"),
        (["jax.numpy:sin", "--arg", "float33[2]"], "an argument's type is written like float32[8,64]; got float33[2]"),
        (["jax.numpy:sin", "--arg", "missing.npy"], "the argument missing.npy cannot be read"),
        (["jax.numpy:sin"], "jax.numpy:sin does not take these arguments"),
        (["jax.numpy:matmul", "--arg", "float32[2,3]", "--arg", "float32[2,3]"], "got (3,) and (2,)"),
        (["jax.numpy:sin", "--arg", "float32[2]", "--backend", "nope"], "there is no backend 'nope'"),
        (["jax.numpy:sign", "--arg", "int32[2]", "--grad"], "no argument holds floating-point numbers"),
        (["jax.numpy:sin", "--arg", "float32[2]", "--json", "/nowhere/r.json"], "/nowhere/r.json cannot be written"),
        (["jax.numpy:sin", "--arg", "float32[2]", "--picture", "r.nope"], "r.nope cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_exit_code_two(words, said):
    done = run(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
