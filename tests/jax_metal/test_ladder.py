"""Each rung of the ladder on machines that are made up: what is chosen, what is refused, and the words of it."""

import subprocess
import sys
from dataclasses import replace

import pytest
from fake_mac import VERSIONS, distribution, mac, mach_o, metal_library
from m2ml_jax_metal.install import EXTRAS, command
from m2ml_jax_metal.ladder import climb
from m2ml_jax_metal.machine import Distribution, Machine, read_machine
from m2ml_jax_metal.probe import Answer
from m2ml_jax_metal.providers import ENVIRONMENT, PROVIDERS, preferred


class Probe:
    """Answers for the probe: all pass but those named; remembers who was asked."""

    def __init__(self, **failures):
        self.failures, self.asked, self.environments = failures, [], []

    def __call__(self, provider, machine, environment):
        self.asked.append(provider.distribution)
        self.environments.append(dict(environment))
        said = self.failures.get(provider.distribution.replace("-", "_"))
        return Answer(not said, said or "5 checks passed", "Apple GPU", 3.0)


def chosen(machine, probe=None):
    ladder = climb(machine, probe or Probe())
    assert bool(ladder.chosen) != bool(ladder.reason)
    return ladder.chosen.distribution.name if ladder.chosen else ladder.reason


# The host


def test_linux_is_refused_in_one_sentence_with_the_command():
    assert chosen(Machine("linux", "x86_64")) == (
        "an Apple GPU needs macOS on arm64; this is linux on x86_64; "
        'on such a Mac, install a provider with: python -m pip install --upgrade "m2ml[jax-mps]"'
    )


def test_an_intel_mac_is_refused():
    assert "this is darwin on x86_64" in chosen(mac("jax-mps", arch="x86_64"))


def test_rosetta_is_named():
    assert "Rosetta" in chosen(mac("jax-mps", arch="x86_64", translated=True))


def test_a_host_that_breaks_asks_nobody():
    probe = Probe()
    assert climb(Machine("linux", "x86_64"), probe).lines == []
    assert probe.asked == []


# Metadata


@pytest.mark.parametrize("name", ["jax-mps", "metaljax", "jax-graft"])
def test_the_one_provider_is_used(name):
    assert chosen(mac(name)) == name


def test_without_a_provider_the_command_fits_the_machine():
    assert '"m2ml[metaljax]"' in chosen(mac(macos="27.0"))
    assert '"m2ml[jax-mps]"' in chosen(mac(macos="26.4"))
    assert '"m2ml[jax-mps]"' in chosen(mac(macos="14.2"))
    assert '"m2ml[jax-graft]"' in chosen(mac(macos="26.4", jax="0.12.0.1"))
    assert 'python -m pip install --upgrade "m2ml[jax-metal]"' in chosen(mac(python="3.11.7", jax="0.5.0"))
    assert 'python3.12 -m pip install --upgrade "m2ml[jax-mps]"' in chosen(mac(python="3.11.7", jax="0.10.2"))
    assert 'python3.12 -m pip install --upgrade "m2ml[jax-mps]"' in command(mac(python="3.11.7"), PROVIDERS["jax-mps"])


def test_a_jax_that_the_release_does_not_take_is_refused_with_the_command():
    assert chosen(mac("jax-mps", jax="0.12.0.1")) == (
        "jax-mps 0.11.1 needs jax<0.12,>=0.11.0, installed is 0.12.0.1; "
        'get one with: python -m pip install --upgrade "m2ml[jax-mps]"'
    )
    assert chosen(mac("jax-graft", jax="0.12.0.1")) == "jax-graft"


def test_a_newer_release_is_asked_itself_what_it_needs():
    assert chosen(mac(distribution("jax-mps", "0.12.0", requires=("jax<0.13,>=0.12",)), jax="0.12.0.1")) == "jax-mps"


def test_a_python_that_the_release_does_not_take_is_refused_with_another():
    said = chosen(mac("jax-mps", python="3.11.7"))
    assert said.startswith("jax-mps 0.11.1 needs Python >=3.12, this is 3.11.7; install it there with: python3.12 -m")


def test_the_other_half_of_a_release_must_be_there():
    assert chosen(mac("jax-graft", Distribution("metal-pjrt-core", "0.0.4"))).startswith(
        "jax-graft 0.0.5 needs metal-pjrt-core==0.0.5, installed is 0.0.4"
    )


def test_apples_own_runs_with_its_old_jax_only():
    assert chosen(mac("jax-metal", jax="0.5.0", python="3.11.7")) == "jax-metal"
    assert chosen(mac("jax-metal", jax="0.5.1")).startswith("jax-metal 0.1.1 needs jax<=0.5.0, installed is 0.5.1")


def test_two_that_claim_one_platform_are_refused_by_name():
    said = chosen(mac("jax-mps", "jax-metallib"))
    assert "jax-mps 0.11.1 and jax-metallib 0.10.1.0 both claim JAX's platform 'mps'; uninstall all but one" in said
    stranger = Distribution("some-mps", "1.0", platforms=("mps",))
    assert "some-mps 1.0 both claim" in chosen(mac("jax-mps", stranger))


def test_a_rival_of_one_platform_does_not_touch_another():
    assert chosen(mac("jax-mps", "applejax", "metaljax")) == "metaljax"


def test_a_stranger_that_jax_loads_is_told():
    lines = climb(mac("jax-mps", Distribution("odd-plugin", "2", platforms=("odd",))), Probe()).lines
    assert any("odd-plugin 2 is a JAX plugin for odd that m2ml does not know" in line for line in lines)


def test_some_are_used_only_when_named_and_one_never():
    assert f"is used only when {ENVIRONMENT}=jax-metallib names it" in chosen(mac("jax-metallib", jax="0.10.2"))
    named = mac(distribution("jax-metallib", requires=()), environment={ENVIRONMENT: "jax-metallib"}, python="3.13.1")
    assert chosen(named) == "jax-metallib"
    assert "applejax 0.9.7 is not used: it is no longer kept" in chosen(mac("applejax"))
    assert "is not used" in chosen(mac("applejax", environment={ENVIRONMENT: "applejax"}))


# Binaries


def test_a_binary_that_is_newer_than_the_system_is_refused_and_says_what_to_use(tmp_path):
    library = mach_o(tmp_path / "libmetal_pjrt_native.dylib", "27.0")
    release = distribution("metaljax", libraries=[library, metal_library(tmp_path / "mlx.metallib", "26.6.2")])
    assert chosen(mac(release, macos="27.0")) == "metaljax"
    said = chosen(mac(release, macos="26.6.2"))
    assert said.startswith("metaljax 0.11.9 needs macOS 27.0, this is 26.6.2 (libmetal_pjrt_native.dylib is built for")
    assert 'or use another with: python -m pip install --upgrade "m2ml[jax-mps]"' in said


def test_a_metal_library_counts_as_much(tmp_path):
    release = distribution("jax-mps", libraries=[metal_library(tmp_path / "mlx.metallib", "26.1")])
    assert "needs macOS 26.1, this is 15.2" in chosen(mac(release, macos="15.2"))


def test_the_library_of_the_other_half_counts(tmp_path):
    core = replace(Distribution("metal-pjrt-core", "0.0.5"), libraries=(mach_o(tmp_path / "core.dylib", "26.0"),))
    assert "needs macOS 26.0" in chosen(mac("jax-graft", core, macos="15.2"))


def test_one_that_is_named_is_left_to_the_probe(tmp_path):
    release = distribution("metaljax", libraries=[mach_o(tmp_path / "new.dylib", "27.0")])
    machine = mac(release, macos="26.1", environment={ENVIRONMENT: "metaljax"})
    assert chosen(machine) == "metaljax"
    assert "it died" in chosen(machine, Probe(metaljax="it died"))


# The probe and the choice


def test_the_first_by_rank_that_passes_is_chosen_and_the_others_are_not_started():
    everything = mac("jax-mps", "metaljax", "jax-graft")
    probe = Probe()
    assert chosen(everything, probe) == "metaljax"
    assert probe.asked == ["metaljax"]
    probe = Probe(metaljax="its probe died of SIGSEGV")
    assert chosen(everything, probe) == "jax-mps"
    assert probe.asked == ["metaljax", "jax-mps"]


def test_when_all_fail_each_says_why():
    said = chosen(mac("jax-mps", "metaljax"), Probe(metaljax="its probe hung", jax_mps="its probe died"))
    assert said == "metaljax 0.11.9 its probe hung; jax-mps 0.11.1 its probe died"


def test_the_user_chooses_by_name():
    assert chosen(mac("jax-mps", "metaljax", environment={ENVIRONMENT: "jax-mps"})) == "jax-mps"
    assert "metaljax is not installed; install it with" in chosen(mac("jax-mps", environment={ENVIRONMENT: "metaljax"}))
    assert "'cuda', which is no provider; known are metaljax, jax-mps" in chosen(
        mac("jax-mps", environment={ENVIRONMENT: "cuda"})
    )


def test_nothing_is_started_when_nothing_is_to_be_chosen():
    probe = Probe()
    ladder = climb(mac("jax-mps", "metaljax"), probe, choose=False)
    assert probe.asked == []
    assert [c.distribution.name for c in ladder.candidates if c.ok] == ["metaljax", "jax-mps"]


def test_the_lines_tell_the_whole_story():
    ladder = climb(mac("jax-mps", "metaljax", "applejax"), Probe())
    text = "\n".join(ladder.lines)
    assert text.startswith(
        "macOS 27.1 (27B78) on Apple M4\nuses metaljax 0.11.9 (platform 'metal'): jax 0.11.2 and Python"
    )
    assert "jax-mps 0.11.1 and applejax 0.9.7 both claim" in text
    assert "rewrite: it is built on the MLX that reduces columns of reversed views wrongly" in text


# What it costs, and what it touches


def test_looking_imports_no_jax_and_takes_no_time():
    code = (
        "import sys, time; from m2ml_jax_metal.machine import read_distributions\n"
        "jax = 'jax' in sys.modules; read_distributions(); began = time.perf_counter(); read_distributions()\n"
        "print(time.perf_counter() - began, [m for m in sys.modules if m.startswith('jax_plugins')])"
    )
    seconds, plugins = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split(maxsplit=1)
    assert plugins.strip() == "[]"
    assert float(seconds) < 0.5, (
        "metadata of a few distributions is read in milliseconds; even a busy machine has half a second"
    )


def test_this_machine_can_be_read():
    machine = read_machine()
    assert (machine.system, machine.version("jax")) == (sys.platform, __import__("jax").__version__)


def test_every_extra_of_a_provider_exists():
    import tomllib
    from pathlib import Path

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(EXTRAS) == {p.distribution for p in preferred()}
    for name in EXTRAS:
        assert any(need.startswith(f"{name}>=") for need in extras[name])
    assert set(VERSIONS) == set(PROVIDERS)


def test_the_readme_has_the_table_of_providers():
    from pathlib import Path

    from m2ml_jax_metal.providers import support_table

    assert support_table() in (Path(__file__).parents[2] / "README.md").read_text()
