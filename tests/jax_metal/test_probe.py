"""The probe: fake providers that compute, miscompute, die, hang and do not start."""

import json

import pytest
from fake_mac import mac, platform_plugin, site
from m2ml_jax_metal import probe
from m2ml_jax_metal.providers import PROVIDERS

MPS = PROVIDERS["jax-mps"]

#: A plugin that registers its platform and then breaks ``x[::-1]`` for the CPU client that stands for a GPU.
WRONG = (
    platform_plugin("mps")
    + """
        import jax
        from jax.interpreters import mlir
        zeros = mlir.lower_fun(lambda x, dimensions: 0 * x, multiple_results=False)
        mlir.register_lowering(jax.lax.rev_p, zeros, platform="cpu")
    """
)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks a provider whose plugin is ``initialize``, with a cache folder of its own."""
    monkeypatch.setenv("M2ML_CACHE", str(tmp_path / "cache"))

    def run(initialize, machine=None, **options):
        if not (tmp_path / "site").exists():
            monkeypatch.syspath_prepend(str(site(tmp_path / "site", "jax-mps", initialize)))
        return probe.ask(MPS, machine or mac("jax-mps"), {"MLX_ENABLE_TF32": "0"}, **options)

    return run


def test_one_that_computes_passes_and_is_asked_once(ask, monkeypatch, tmp_path):
    first = ask(platform_plugin("mps"))
    assert (first.ok, first.said, first.remembered) == (True, "5 checks passed", "")
    assert first.device == "cpu"
    monkeypatch.setattr(probe, "_run_child", lambda *_: pytest.fail("asked again"))
    again = ask("")
    assert again.ok
    assert json.loads((tmp_path / "cache" / "jax_metal").joinpath(again.remembered).read_text())["ok"]


@pytest.mark.parametrize(
    "other",
    [mac("jax-mps", jax="0.11.3"), mac("jax-mps", build="27C1"), mac("jax-mps", chip="Apple M5"), mac("metaljax")],
)
def test_other_versions_systems_and_chips_are_asked_anew(ask, monkeypatch, other):
    asked = []
    monkeypatch.setattr(probe, "_run_child", lambda *_: (asked.append(1) or probe.Answer(True, "fine"), True))
    ask("")
    ask("", other)
    ask("", other)
    assert len(asked) == 2
    ask("", other, fresh=True)
    assert len(asked) == 3


def test_wrong_numbers_are_found(ask):
    answer = ask(WRONG)
    assert not answer.ok
    assert answer.said.startswith("its probe failed (reversed view: y[::-1] * 2 gave [0.0, 0.0,")
    assert ask("").remembered, "a provider that is wrong is not started again in every process"


def test_one_that_dies_is_survived_and_named(ask):
    answer = ask("def initialize():\n    import os\n    os.abort()\n")
    assert not answer.ok
    assert answer.said.startswith("its probe died of SIGABRT")


def test_one_that_hangs_is_stopped_and_asked_again_next_time(ask, monkeypatch):
    monkeypatch.setattr(probe, "TIME_LIMIT", 3.0)
    answer = ask("def initialize():\n    import time\n    time.sleep(60)\n")
    assert answer.said == "its probe gave no answer within 3 s"
    monkeypatch.setattr(probe, "_run_child", lambda *_: (probe.Answer(True, "fine"), True))
    assert ask("").ok


def test_one_that_does_not_start_says_why(ask):
    answer = ask(platform_plugin("mps", broken="No Metal device found"))
    assert not answer.ok
    assert "Unable to initialize backend 'mps': No Metal device found" in answer.said


def test_what_cannot_be_remembered_costs_a_probe_only(ask, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(probe, "_run_child", lambda *_: (probe.Answer(True, "fine"), True))
    assert ask("").ok
    assert ask("").remembered == ""
