"""What is written about m2ml runs, and the support table is the registry's."""

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import m2ml
from m2ml.support import ops_table, support_table

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


MODULES = ("m2ml", *(info.name for info in pkgutil.walk_packages(m2ml.__path__, "m2ml.")))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 5


def test_the_twenty_lines_run(capsys):
    exec(EXAMPLES[0], {})
    said = capsys.readouterr().out
    losses = dict(re.findall(r"^(cpu|mlx|reference) ([\d.e-]+)$", said, re.MULTILINE))
    assert set(losses) == {"cpu", "mlx", "reference"}
    assert "mlx: agrees" in said


def test_the_ops_example_runs_a_kernel(capsys):
    exec(EXAMPLES[1], {})
    assert "attention: kernel cpp/attention" in capsys.readouterr().out


def test_the_table_of_ops_is_current():
    import m2ml.ops  # noqa: F401 - registers them

    assert ops_table() in README


def test_the_backend_example_is_a_backend(monkeypatch):
    from m2ml.plugins import Registry

    plugin = type(sys)("toy_plugin")
    (example,) = (text for text in EXAMPLES if "class ToyBackend" in text)
    exec(example, plugin.__dict__)
    registry = Registry(_discovered=True)
    registry.load("toy", plugin)
    backend = registry.get("toy")
    program = m2ml.jit(lambda x, y: x * y + x).program(1.0, 2.0)
    assert backend.compile(program)(3, 4) == [15]
    missing = m2ml.jit(lambda x: -x).program(1.0)
    with pytest.raises(m2ml.UnsupportedPrimitive, match=r"there is no rule for neg\(float32\[\]\)"):
        backend.compile(missing)(3)


@pytest.mark.skipif(sys.platform != "linux", reason="the table in the README is made on Linux, where no Apple GPU is")
def test_the_support_table_is_current():
    assert support_table() in README


def test_declared_gaps_of_mlx_are_what_the_reference_has_and_mlx_lacks():
    """Strict both ways: nothing undeclared is missing, and nothing declared has a rule."""
    from m2ml_mlx.regions import CALLBACKS

    mlx, reference = m2ml.backends()["mlx"], m2ml.backends()["reference"]
    lacking = set(reference.rules) - set(mlx.rules) - CALLBACKS
    assert {gap.primitive for gap in mlx.gaps if (gap.dtype, gap.case) == ("*", "*")} == lacking


def test_the_readme_names_every_command():
    import typer.main

    from m2ml.cli import app

    for command in typer.main.get_command(app).commands:
        assert f"m2ml {command}" in README
