"""The example kernel plugin, built and installed in an environment of its own, held to the kit."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kernel_plugin"

pytestmark = [pytest.mark.slow, pytest.mark.network]

CHECK = """
import jax, jax.numpy as jnp, m2ml, numpy as np
from m2ml.plugins import registry
from m2ml.op import ops

registry.discover()
soft_sign = ops["soft_sign"]
x = jnp.array([1.0, -3.0, 0.0])
said = m2ml.jit(lambda x: soft_sign(x), backend="cpu").explain(x).text
assert "soft_sign: kernel soft_sign.cc" in said, said
np.testing.assert_allclose(m2ml.jit(lambda x: soft_sign(x), backend="cpu")(x), [0.5, -0.75, 0.0])
np.testing.assert_allclose(jax.grad(lambda x: soft_sign(x).sum())(x), [0.25, 0.0625, 1.0])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = ["-c", ROOT / "tests" / "constraints.txt"]
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, f"{ROOT}[kit]", EXAMPLE, *constraints], check=True)
    return folder


def test_the_op_runs_by_its_kernel(environment):
    subprocess.run([environment / "bin" / "python", "-W", "error", "-c", CHECK], check=True, cwd=environment)


def test_the_op_passes_the_kit(environment):
    command = [environment / "bin" / "m2ml", "conformance", "cpu", "--part", "ops", "--json", "ops.json"]
    done = subprocess.run(command, cwd=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"soft_sign values"' in (environment / "ops.json").read_text()


def test_it_is_under_sixty_lines():
    source = (EXAMPLE / "m2ml_soft_sign" / "__init__.py").read_text().splitlines()
    assert len([line for line in source if line.strip()]) < 60
