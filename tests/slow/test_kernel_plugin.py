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


CHECK_METAL = """
import m2ml, numpy as np
from m2ml.equivalence.ops import Implementation, check_gradient, check_values, fault_is_caught
from m2ml.op import ops
from m2ml.plugins import registry
from m2ml_kernels.metal_host import emulate

registry.discover()
soft_sign = ops["soft_sign"]
with emulate():
    said = m2ml.jit(lambda x: soft_sign(x), backend="mlx").explain(np.ones(3, np.float32)).text
    assert "soft_sign: kernel soft_sign.metal" in said, said
    for sample in soft_sign.samples():
        for dtype in ("float32", "float16"):
            check_values(soft_sign, sample, dtype, [Implementation("mlx", True)])
        check_gradient(soft_sign, sample, "float32", [Implementation("mlx", True)])
assert all(fault_is_caught(soft_sign, fault, list(soft_sign.samples()), "cpu") for fault in soft_sign.faults)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = ["-c", ROOT / "tests" / "constraints.txt"]
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, f"{ROOT}[kit,mlx]", EXAMPLE, *constraints], check=True)
    return folder


def test_the_op_runs_by_its_kernel(environment):
    subprocess.run([environment / "bin" / "python", "-W", "error", "-c", CHECK], check=True, cwd=environment)


def test_the_metal_kernel_agrees_on_the_host(environment):
    subprocess.run([environment / "bin" / "python", "-W", "error", "-c", CHECK_METAL], check=True, cwd=environment)


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_the_op_passes_the_kit(environment, backend, tmp_path):
    command = [environment / "bin" / "python", "-m", "pytest", "--m2ml-backend", backend, "-k", "soft_sign"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout  # values, gradients, laws, vmap


def test_it_is_under_sixty_lines():
    source = (EXAMPLE / "m2ml_soft_sign" / "__init__.py").read_text().splitlines()
    assert len([line for line in source if line.strip()]) < 60
