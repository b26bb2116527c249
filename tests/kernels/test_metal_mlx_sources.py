"""Every Metal file of MLX that uses no tensor operations type-checks, in every instantiation that MLX makes of it.

No wheel ships the files, only the headers, so they come from a checkout: ``$M2ML_MLX_SOURCE``, or else from GitHub.
"""

import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest
from m2ml_kernels.metal_host.build import SHIM, Source, type_check_unit

pytestmark = [pytest.mark.slow, pytest.mark.network]
REPOSITORY, FOLDER = "https://github.com/ml-explore/mlx", "mlx/backend/metal/kernels"
# So many of the 35 files at the least; g++ knows no explicit specialization inside a class, which four of them use.
LEAST = {"g++": 28, "clang++": 30}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    if given := os.environ.get("M2ML_MLX_SOURCE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("mlx")
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{mx.__version__}", REPOSITORY, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"no checkout of MLX: set M2ML_MLX_SOURCE to one ({done.stderr.strip()[:200]})")
    return folder


def compilers():
    found = {"g++": shutil.which("g++")}
    names = ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1)))
    found["clang++"] = next((path for name in names if (path := shutil.which(name))), None)
    return {name: path for name, path in found.items() if path}


def refused(compiler, file, checkout, target, more=""):
    """What the compiler says of a file of MLX, or nothing."""
    root = checkout / FOLDER
    target.write_text(type_check_unit(Source(file.read_text() + more, str(file), (checkout, root, file.parent))))
    flags = ["-std=c++17", "-fsyntax-only", "-w", "-Wno-narrowing", f"-I{SHIM}"]
    return subprocess.run([compiler, *flags, target], capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("name", compilers())
def test_files_type_check_in_every_instantiation(checkout, tmp_path, name):
    files = [file for file in sorted((checkout / FOLDER).rglob("*.metal")) if "nax" not in file.name]
    assert len(files) >= 35
    said = {file.name: refused(compilers()[name], file, checkout, tmp_path / "unit.cc") for file in files}
    right = [file for file, errors in said.items() if "error" not in errors]
    wrong = {
        file: errors.partition("error: ")[2].partition("\n")[0] for file, errors in said.items() if file not in right
    }
    assert len(right) >= LEAST[name], wrong
    text = 'template [[host_name("w")]] [[kernel]] decltype(softmax_single_row<float4>) softmax_single_row<float4>;\n'
    softmax = next(file for file in files if file.name == "softmax.metal")
    assert "error" in refused(compilers()[name], softmax, checkout, tmp_path / "unit.cc", text)
