"""The example backend in an environment of its own: built, installed, held to the kit, and training a Flax model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "backend_plugin"

pytestmark = [pytest.mark.slow, pytest.mark.network]

#: The forward pass and one Adam step of a Flax GPT on PyTorch, held to the bound that the reference measures.
TRAIN = """
import jax, m2ml, numpy as np, torch
from m2ml.equivalence.conformance.programs import train_step
from m2ml.models import GPT, GPTConfig, functional

model = functional(GPT, GPTConfig(vocab_size=17, context=16, layers=2, heads=2, embed_dim=16))
params = m2ml.get(jax.jit(model.init)(jax.random.key(0)))
tokens = np.random.default_rng(0).integers(0, 17, (2, 16)).astype(np.int32)
logits = m2ml.jit(model.apply).on("torch")(params, tokens)
assert isinstance(logits, torch.Tensor)
m2ml.compare(model.apply, params, tokens, backends=["torch"]).check()
step = train_step(model.apply)
m2ml.compare(step, params, tokens, tokens[:, ::-1], backends=["torch"]).check()
jitted, losses = m2ml.jit(step).on("torch"), []
for _ in range(5):
    params, _, loss = jitted(params, tokens, tokens[:, ::-1])
    losses.append(float(loss))
assert all(isinstance(leaf, torch.Tensor) for leaf in jax.tree.leaves(params))
assert losses == sorted(losses, reverse=True), losses
print("losses", *losses)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The folder of an environment with m2ml and the example, both as built packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
    constraints = ["-c", ROOT / "tests" / "constraints.txt"]
    subprocess.run([*install, f"{ROOT}[kit]", EXAMPLE, *constraints], check=True)
    return folder


def run(environment: Path, *command: str, code: int = 0) -> str:
    """What a command of the environment prints, in its empty folder; ``code`` is the exit code it must end with."""
    program = environment / "venv" / "bin" / command[0]
    done = subprocess.run(
        [program, *command[1:]], cwd=environment, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_example_passes_the_kit(environment):
    said = run(environment, "m2ml", "conformance", "torch", "--examples", "8", "--json", "torch.json")
    assert re.match(r"torch on PyTorch \S+ \((cpu|gpu)\), jax ", said.splitlines()[0])
    assert "failed:" not in said
    assert "PyTorch has it, this example has no rule for it: primitives/approx_top_k" in said
    report = json.loads((environment / "torch.json").read_text())
    passed = [row["name"] for row in report["results"] if (row["part"], row["outcome"]) == ("primitives", "passed")]
    assert report["counts"]["failed"] == 0
    assert len(passed) >= 110


def test_the_pytest_plugin_is_in_the_wheel(environment):
    said = run(environment, "python", "-m", "pytest", "--m2ml-backend", "torch", "-q", "-k", "contract or dtypes/int")
    assert "torch on PyTorch" in said
    assert " passed" in said.splitlines()[-1]


def test_a_broken_rule_fails_the_kit(environment):
    """The exit code and the line, on a copy of the example's own table."""
    (environment / "conftest.py").write_text(
        "from m2ml_torch.rules import rules\nrules['tanh'] = lambda equation, x: x.tanh() * 1.00001\n"
    )
    chosen = ("--m2ml-backend", "torch", "-q", "-k", "primitives/tanh or primitives/exp")
    said = run(environment, "python", "-m", "pytest", *chosen, code=1)
    (environment / "conftest.py").unlink()
    assert re.search(r"^FAILED m2ml::torch::primitives/tanh", said, re.MULTILINE)
    assert "torch: tanh(float32[" in said


def test_a_flax_gpt_trains_on_torch(environment):
    losses = run(environment, "python", "-c", TRAIN).split()
    assert losses[0] == "losses"
    assert len(losses) == 6
