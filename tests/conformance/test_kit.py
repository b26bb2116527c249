"""The conformance kit: our backends pass it, a broken one fails with the right line, gaps are strict both ways."""

import ast
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from m2ml import MemoryStats, UnsupportedDtype
from m2ml.backend import Gap
from m2ml.cli import app
from m2ml.equivalence.conformance import Result, Subject, as_json, run_check, suite, support_table
from m2ml.plugins import registry

Reference = type(registry.get("reference"))

#: Parts that run whole; of the others, which other tests run at length, every so many checks.
WHOLE = ("contract", "errors", "resources")
EVERY = 40


@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_our_backends_pass(backend):
    subject = Subject(registry.get(backend), examples=1)
    checks = suite(subject)
    rest = [check for check in checks if check.part not in WHOLE][::EVERY]
    chosen = [check for check in checks if check.part in WHOLE] + rest
    results = [run_check(check, subject) for check in chosen]
    failed = [f"{r.part}/{r.name}: {r.message}" for r in results if r.outcome == "failed"]
    assert not failed
    assert sum(r.outcome == "passed" for r in results) > 20


# Broken backends: the reference with one thing wrong -----------------------------------------------------------


class Broken(Reference):
    """The reference under another name, with some rules replaced or left out, and with gaps of its own."""

    name = "broken"

    def __init__(self, *args, replaced=(), gaps=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.rules = {name: rule for name, rule in {**self.rules, **dict(replaced)}.items() if rule is not None}
        self.gaps = gaps


def result_of(backend, name, **options) -> Result:
    subject = Subject(backend, examples=4, **options)
    (check,) = [check for check in suite(subject) if check.id == name]
    return run_check(check, subject)


def assert_fails(backend, name, *said, **options):
    result = result_of(backend, name, **options)
    assert result.outcome == "failed", result
    for phrase in said:
        assert phrase in result.message, result.message


def test_a_wrong_rule_is_named():
    wrong = Broken(replaced={"sin": lambda equation, x: np.cos(x)})
    assert_fails(wrong, "primitives/sin", "AssertionError", "broken: sin(float32[", "reference")
    assert result_of(wrong, "primitives/cos").outcome == "passed"
    assert_fails(wrong, "gradients/grad of looped", "outside the bound around the reference")


def test_an_undeclared_gap_fails_and_a_declared_one_is_a_gap():
    assert_fails(Broken(replaced={"sin": None}), "primitives/sin", "UnsupportedPrimitive: there is no rule for sin(")
    declared = Broken(replaced={"sin": None}, gaps=(Gap("sin", "*", "it was left out"),))
    assert result_of(declared, "primitives/sin").outcome == "gap"
    assert result_of(declared, "gradients/grad of looped").message == "it was left out"


def test_a_gap_that_passes_fails():
    assert_fails(
        Broken(gaps=(Gap("sin", "*", "it was left out"),)),
        "primitives/sin",
        "sin is declared as a gap, but every example agrees: remove the gap",
    )
    assert_fails(Broken(gaps=(Gap("*", "int8", "too narrow"),)), "dtypes/int8", "int8 is declared as a gap")


def test_gaps_of_nothing_and_of_everything_fail():
    name = "contract/declares gaps of what exists"
    assert_fails(Broken(gaps=(Gap("sine", "*", "misspelt"),)), name, "there is no primitive 'sine'")
    assert_fails(Broken(gaps=(Gap("*", "*", "lazy"),)), name, "a gap of everything excuses everything")
    assert_fails(Broken(gaps=(Gap("sin", "*", " "),)), name, "the gap of sin * has no reason")


def test_wrong_numbers_are_no_gap():
    """A gap is refused; wrong numbers fail whatever is declared."""
    wrong = Broken(replaced={"sin": lambda equation, x: np.cos(x)}, gaps=(Gap("sin", "*", "it is wrong"),))
    assert_fails(wrong, "primitives/sin", "broken: sin(")


class Changed(Broken):
    """An executable that does something besides: ``around(run, args)``."""

    def __init__(self, around):
        super().__init__()
        self.around = around

    def compile(self, program):
        return partial(self.around, super().compile(program))


def test_a_leak_is_found():
    held = []

    def leaking(run, *args):
        held.append([np.array(y) for y in run(*args)])
        return held[-1]

    assert_fails(Changed(leaking), "resources/buffers do not leak", "bytes more after 48 calls were dropped")


def test_memory_that_is_not_returned_or_not_counted_is_found():
    class Counting(Changed):
        def memory(self):
            return MemoryStats(active(), 1 << 40)

    calls = []
    backend = Counting(lambda run, *args: [calls.append(1), run(*args)][1])
    active = lambda: len(calls) << 20  # noqa: E731
    assert_fails(backend, "resources/memory is returned", "bytes more after 48 calls were dropped")
    active = lambda: 1 << 20  # noqa: E731
    assert_fails(backend, "resources/memory is counted", "memory() grew by 0 bytes while 8388608 more are held")


def test_an_engine_that_raises_is_found_and_nothing_is_lost():
    def raising(run, *args):
        raise RuntimeError("the engine is on fire")

    assert_fails(Changed(raising), "contract/gives outputs in order", "RuntimeError: the engine is on fire")
    assert_fails(Changed(raising), "programs/branches", "the engine is on fire")


def test_a_hanging_thread_is_found():
    release = threading.Event()

    def hanging(run, *args):
        if threading.current_thread() is not threading.main_thread():
            release.wait(60)
        return run(*args)

    try:
        name = "resources/two threads call one executable"
        assert_fails(Changed(hanging), name, "a thread that calls the backend did not return within 0.2 s", timeout=0.2)
    finally:
        release.set()


def test_results_that_threads_mix_up_are_found():
    both = threading.Barrier(2)
    last = []

    def mixing(run, *args):
        if threading.current_thread() is threading.main_thread():
            return run(*args)
        last.append(run(*args))
        try:
            both.wait(0.5)
        except threading.BrokenBarrierError:
            return last[-1]
        return last[0]

    name = "resources/two threads call one executable"
    assert_fails(Changed(mixing), name, "a call got the results of another thread's call")


class Narrowing(Broken):
    def from_host(self, array):
        with np.errstate(all="ignore"):
            return super().from_host(array.astype(np.float32) if array.dtype == np.float64 else array)


class Refusing(Broken):
    message = "no int4"

    def from_host(self, array):
        if array.dtype.name == "int4":
            raise UnsupportedDtype(self.message)
        return super().from_host(array)


def test_dtypes_are_kept_or_refused_in_one_sentence():
    assert_fails(Narrowing(), "dtypes/float64", "float64() came back as float32")
    assert result_of(Refusing(), "dtypes/int4").outcome == "gap"
    long_winded = Refusing()
    long_winded.message = "no int4\nat all"
    assert_fails(long_winded, "dtypes/int4", "an error is one sentence on one line")
    long_winded.message = "no such thing"
    assert_fails(long_winded, "dtypes/int4", "a refused dtype is named")


def test_a_backend_that_is_worse_after_an_error_is_found():
    class Spoilt(Broken):
        spoilt = False

        def apply(self, equation, arrays):
            try:
                outs = super().apply(equation, arrays)
            except Exception:
                self.spoilt = True
                raise
            return [y * 2 for y in outs] if self.spoilt else outs

    assert_fails(Spoilt(), "errors/an unknown primitive", "outside the bound around the reference")


def test_other_random_numbers_are_found():
    def threefry(equation, *operands):
        return [y + np.uint32(1) for y in Reference().rules["threefry2x32"](equation, *operands)]

    broken = Broken(replaced={"threefry2x32": threefry})
    assert_fails(broken, "random numbers/bits", "other numbers than JAX draws from seed")


# What the kit prints --------------------------------------------------------------------------------------


def test_the_table_counts_supports_and_names():
    results = [
        Result("primitives", "sin", "passed"),
        Result("primitives", "cos", "gap", "no reason\nin one line"),
        Result("errors", "a callback that raises", "failed", "RuntimeError: on\n fire"),
        Result("resources", "memory is returned", "not run", "it does not say"),
    ]
    table = support_table(registry.get("reference"), results)
    assert table.splitlines()[0].startswith("reference on NumPy float64 (cpu), jax ")
    assert table.splitlines()[-2:] == ["failed:", "  errors/a callback that raises: RuntimeError: on fire"]
    assert "primitives: sin" in table
    assert "  no reason in one line: primitives/cos" in table
    assert "some of the checks only" in support_table(registry.get("reference"), results, complete=False)
    counts = as_json(registry.get("reference"), results)["counts"]
    assert counts == {"passed": 1, "failed": 1, "gap": 1, "not run": 1}


# The command ----------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """A backend ``broken`` with a misspelt gap, for the length of a test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register("broken", lambda: Broken(gaps=(Gap("sine", "*", "misspelt"),)))


def command(*args, code):
    result = CliRunner().invoke(app, ["conformance", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    said = command("reference", "--part", "contract", "--json", tmp_path / "out.json", code=0)
    assert "some of the checks only" in said
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["backend"] == "reference"
    assert {row["outcome"] for row in report["results"]} == {"passed"}


def test_the_command_exits_with_1_on_a_failure(registered):
    said = command("broken", "--part", "contract", code=1)
    assert "failed:" in said
    assert "contract/declares gaps of what exists: AssertionError: there is no primitive 'sine'" in said


def test_the_command_refuses_in_one_sentence():
    assert "there is no backend 'nope'" in command("nope", code=2)
    said = command("reference", "--part", "poetry", code=2)
    assert "there is no part poetry of the suite; its parts are contract, dtypes" in said
    assert "there is no transform 'sideways'" in command("reference", "--jax-cases", "--transform", "sideways", code=2)


def test_the_command_runs_the_cases_of_jax(tmp_path):
    chosen = ("--jax-cases", "--group", "neg", "--group", "igamma", "--limit", 2)
    said = command("mlx", *chosen, "--json", tmp_path / "out.json", code=0)
    assert "| neg |" in said
    _, igamma = json.loads((tmp_path / "out.json").read_text())
    assert (igamma["group"], list(igamma["fallbacks"].values())) == ("igamma", [igamma["cases"]])


# The pytest plugin ----------------------------------------------------------------------------------------


def pytest_in(folder, *args):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_plugin_runs_in_an_empty_folder(tmp_path):
    done = pytest_in(tmp_path, "--m2ml-backend", "reference", "-k", "contract", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "m2ml::reference::contract/knows its arrays PASSED" in done.stdout
    assert "reference on NumPy float64 (cpu)" in done.stdout
    assert "7 passed" in done.stdout


def test_the_plugin_fails_with_the_right_line(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import numpy as np\n"
        "import m2ml\n"
        "from m2ml.plugins import registry\n"
        "class Broken(type(registry.get('reference'))):\n"
        "    name = 'broken'\n"
        "    gaps = (m2ml.Gap('cos', '*', 'left out'), m2ml.Gap('tan', '*', 'not left out'))\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        self.rules = {**self.rules, 'sin': lambda equation, x: np.cos(x)}\n"
        "        del self.rules['cos']\n"
        "registry.register('broken', Broken)\n"
    )
    chosen = "primitives/sin or primitives/cos or primitives/tan or primitives/exp"
    done = pytest_in(tmp_path, "--m2ml-backend", "broken", "--m2ml-examples", "2", "-rfx", "-k", chosen)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED m2ml::broken::primitives/sin - " in done.stdout
    assert "tan is declared as a gap, but every example agrees: remove the gap" in done.stdout
    assert "XFAIL m2ml::broken::primitives/cos - declared gap: left out" in done.stdout


def test_an_unknown_backend_is_a_usage_error(tmp_path):
    done = pytest_in(tmp_path, "--m2ml-backend", "nope")
    assert done.returncode == 4
    assert "ERROR: there is no backend 'nope'" in done.stderr


def test_an_ordinary_run_imports_nothing_of_ours(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_modules():\n    assert not {'m2ml', 'jax', 'numpy'} & set(sys.modules)\n"
        "    assert 'm2ml_pytest' in sys.modules\n"
    )
    done = pytest_in(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr


# The example -----------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend_plugin" / "m2ml_torch"


def test_the_example_imports_the_public_package_only():
    imported = set()
    for file in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    assert {name for name in imported if name.split(".")[0] == "m2ml"} == {"m2ml"}
