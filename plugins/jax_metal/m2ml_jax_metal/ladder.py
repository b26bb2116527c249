"""Which provider can be used: rungs from the cheapest and safest up, none with a side effect before the last.

1. the host: macOS on arm64, not translated; 2. installed distributions against the installed JAX and Python, from
metadata alone; 3. the oldest macOS that their binaries ask for; 4. a probe in a process of its own; 5. only then, in
`m2ml_jax_metal.engine`, JAX itself. Each rung reads a `Machine` record and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from m2ml_jax_metal import known_bad, probe
from m2ml_jax_metal.binaries import minimum_macos
from m2ml_jax_metal.install import command
from m2ml_jax_metal.machine import Distribution, Machine, read_machine
from m2ml_jax_metal.providers import ENVIRONMENT, PROVIDERS, Provider, preferred

#: Asks a provider in a process of its own.
Ask = Callable[[Provider, Machine, Mapping[str, str]], probe.Answer]


@dataclass(frozen=True)
class Rung:
    """One step: ``said`` is what was found where it holds, and why it does not where it breaks."""

    name: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Candidate:
    """An installed provider and the rungs it was tried on, up to the first that broke."""

    provider: Provider
    distribution: Distribution
    rungs: tuple[Rung, ...] = ()
    entries: tuple[known_bad.KnownBad, ...] = ()

    @property
    def ok(self) -> bool:
        return all(rung.ok for rung in self.rungs)

    @property
    def reason(self) -> str:
        return next((f"{self.distribution} {rung.said}" for rung in self.rungs if not rung.ok), "")

    @property
    def line(self) -> str:
        if not self.ok:
            return self.reason
        said = "; ".join(rung.said for rung in self.rungs if rung.said)
        return f"{self.distribution} (platform {self.provider.platform!r}): {said}"

    def environment(self) -> dict[str, str]:
        """What is set before its library is loaded."""
        return dict(self.provider.environment) | known_bad.environment(self.entries)


@dataclass(frozen=True)
class Ladder:
    """What was found on a machine: the provider to use, or the one sentence that says why there is none."""

    machine: Machine
    host: Rung
    candidates: Sequence[Candidate] = ()
    chosen: Candidate | None = None
    reason: str = ""
    strangers: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """For `m2ml doctor`: the host, each candidate, and what is done about what the chosen one gets wrong."""
        if not self.host.ok:
            return []
        others = [candidate.line for candidate in self.candidates if candidate is not self.chosen]
        chosen = [f"uses {self.chosen.line}"] if self.chosen else []
        entries = self.chosen.entries if self.chosen else ()
        doing = [f"{entry.action}: it {entry.what} ({entry.source})" for entry in entries]
        return [self.host.said, *chosen, *doing, *others, *self.strangers]


def climb(machine: Machine, ask: Ask = probe.ask, *, choose: bool = True) -> Ladder:
    """Try every rung. With ``choose=False`` the probe is left out: nothing is started at all."""
    host = _host(machine)
    if not host.ok:
        return Ladder(machine, host, reason=f"{host.said}; {_advice(machine)}")
    named = machine.environment.get(ENVIRONMENT, "")
    candidates = [_checked(p, d, machine, named) for p, d in _installed(machine)]
    strangers = _strangers(machine)
    order = _in_order(candidates, named)
    chosen = None
    if choose:
        for i, candidate in enumerate(order):
            if candidate.ok and chosen is None:
                order[i] = _probed(candidate, machine, ask)
                chosen = order[i] if order[i].ok else None
        tried = {c.distribution.name: c for c in order}
        candidates = [tried.get(c.distribution.name, c) for c in candidates]
    reason = "" if chosen or not choose else _why_none(machine, candidates, order, named)
    return Ladder(machine, host, candidates, chosen, reason, strangers)


def _host(machine: Machine) -> Rung:
    if machine.system == "darwin" and machine.translated:
        said = "this Python is an x86_64 one that Rosetta translates; an Apple GPU needs an arm64 Python: install one"
        return Rung("host", False, said)
    if machine.system != "darwin" or machine.arch != "arm64":
        return Rung("host", False, f"an Apple GPU needs macOS on arm64; this is {machine.system} on {machine.arch}")
    built = f" ({machine.build})" if machine.build else ""
    return Rung("host", True, f"macOS {machine.macos}{built} on {machine.chip or 'an arm64 chip'}")


def _installed(machine: Machine) -> Iterator[tuple[Provider, Distribution]]:
    for name, provider in PROVIDERS.items():
        if name in machine.distributions:
            yield provider, machine.distributions[name]


def _strangers(machine: Machine) -> list[str]:
    """Plugins of JAX that m2ml does not know: JAX starts them all the same."""
    return [
        f"{dist} is a JAX plugin for {', '.join(dist.platforms)} that m2ml does not know; JAX loads it all the same"
        for dist in machine.distributions.values()
        if dist.platforms and dist.name not in PROVIDERS
    ]


# Rung 2: metadata -------------------------------------------------------------------------------------


def _checked(provider: Provider, dist: Distribution, machine: Machine, named: str) -> Candidate:
    """The rungs that start nothing."""
    entries = known_bad.known_bad(dist.name, dist.version, machine)
    found = Candidate(provider, dist, (), entries)
    for rung in (_allowed, _metadata, _binaries):
        if found.ok:
            found = replace(found, rungs=(*found.rungs, rung(found, machine, named)))
    return found


def _allowed(candidate: Candidate, machine: Machine, named: str) -> Rung:
    """Whether it may be used at all: alone on its platform, not known to be wrong, named where it must be."""
    provider, dist = candidate.provider, candidate.distribution
    rivals = [d for p, d in _installed(machine) if p.platform == provider.platform and d.name != dist.name]
    rivals += [
        d for d in machine.distributions.values() if d.name not in PROVIDERS and provider.platform in d.platforms
    ]
    if rivals:
        others = " and ".join(map(str, rivals))
        said = f"and {others} both claim JAX's platform {provider.platform!r}; uninstall all but one of them"
        return Rung("allowed", False, said)
    if provider.refused:
        return Rung("allowed", False, f"is not used: {provider.refused}")
    if provider.only_named and named != dist.name:
        return Rung("allowed", False, f"is used only when {ENVIRONMENT}={dist.name} names it: {provider.only_named}")
    wrong = [e for e in candidate.entries if e.action == "refuse" and not e.primitive]
    if wrong:
        said = f"{wrong[0].what} ({wrong[0].source})"
        update = "" if wrong[0].if_set else f"; update it with: {command(machine, provider)}"
        return Rung("allowed", False, said + update)
    return Rung("allowed", True, "")


def _metadata(candidate: Candidate, machine: Machine, named: str) -> Rung:
    """Its requirements of Python, jax and jaxlib against what is installed."""
    provider, dist = candidate.provider, candidate.distribution
    python = dist.python
    if not SpecifierSet(python).contains(machine.python, prereleases=True):
        said = f"needs Python {python}, this is {machine.python}; install it there with: {command(machine, provider)}"
        return Rung("metadata", False, said)
    for need in _needs(provider, dist):
        have = machine.version(canonicalize_name(need.name))
        if not have or not need.specifier.contains(have, prereleases=True):
            said = f"needs {need.name}{need.specifier}, installed is {have or 'none'}"
            return Rung("metadata", False, f"{said}; get one with: {command(machine, provider)}")
    return Rung("metadata", True, f"jax {machine.version('jax')} and Python {machine.python} are what it needs")


def _needs(provider: Provider, dist: Distribution) -> Iterator[Requirement]:
    """What it says it needs of JAX and of its own other parts; what is known to work besides."""
    for text in dist.requires:
        need = Requirement(text)
        name = canonicalize_name(need.name)
        if name in ("jax", "jaxlib") and need.marker is None:
            yield need
        elif name in provider.companions:
            need.marker = None
            yield need
    if provider.jax_at_most:
        yield Requirement(f"jax<={provider.jax_at_most}")


# Rung 3: binaries -------------------------------------------------------------------------------------


def _binaries(candidate: Candidate, machine: Machine, named: str) -> Rung:
    """The oldest macOS its libraries ask for. One that was named is left to the probe: they might load all the same."""
    provider, dist = candidate.provider, candidate.distribution
    owners = [dist, *(machine.distributions[n] for n in provider.companions if n in machine.distributions)]
    needs = [(minimum_macos(path), path) for owner in owners for path in owner.libraries]
    known = [(Version(version), path) for version, path in needs if version]
    if not known:
        return Rung("binaries", True, "its binaries do not say which macOS they need")
    newest, path = max(known)
    said = f"{path.name} is built for macOS {newest} or later"
    if Version(machine.macos or "0") >= newest:
        return Rung("binaries", True, said)
    if named == dist.name:
        return Rung("binaries", True, f"{said}, this is {machine.macos}; tried since it was named")
    other = _other(machine, provider)
    said = f"needs macOS {newest}, this is {machine.macos or 'unknown'} ({said}); update macOS{other}"
    return Rung("binaries", False, said)


def _other(machine: Machine, provider: Provider) -> str:
    for one in preferred():
        if one is not provider and _fits(one, machine):
            return f", or use another with: {command(machine, one)}"
    return ""


# Rung 4: the probe ------------------------------------------------------------------------------------


def _probed(candidate: Candidate, machine: Machine, ask: Ask) -> Candidate:
    answer = ask(candidate.provider, machine, candidate.environment())
    rung = Rung("probe", answer.ok, answer.said + _when(answer))
    return replace(candidate, rungs=(*candidate.rungs, rung))


def _when(answer: probe.Answer) -> str:
    if answer.ok:
        return f" in {answer.seconds:g} s{', remembered' if answer.remembered else ''}"
    return f" (remembered; delete {answer.remembered} to ask again)" if answer.remembered else ""


# The choice -------------------------------------------------------------------------------------------


def _in_order(candidates: Sequence[Candidate], named: str) -> list[Candidate]:
    """Those that may be chosen, best first: the one that was named, or all by their rank."""
    if named:
        return [c for c in candidates if c.distribution.name == canonicalize_name(named)]
    ranked = [c for c in candidates if c.provider.rank is not None]
    return sorted(ranked, key=lambda c: c.provider.rank or 0)


def _why_none(machine: Machine, candidates: Sequence[Candidate], order: Sequence[Candidate], named: str) -> str:
    if named and not order:
        if named not in PROVIDERS:
            return f"{ENVIRONMENT} names {named!r}, which is no provider; known are {', '.join(PROVIDERS)}"
        return f"{named} is not installed; install it with: {command(machine, PROVIDERS[named])}"
    if not candidates:
        return f"no provider of JAX on Apple GPUs is installed; {_advice(machine)}"
    return "; ".join(c.reason for c in (order if named else candidates) if not c.ok)


def _fits(provider: Provider, machine: Machine) -> bool:
    """Whether a provider could be installed on this macOS with this Python."""
    macos = not machine.macos or Version(machine.macos) >= Version(provider.macos)
    return macos and SpecifierSet(provider.python).contains(machine.python, prereleases=True)


def advised(machine: Machine) -> Provider:
    """The provider to install on a Mac: one that takes the installed jax, else one for this Python, else jax-mps."""
    if machine.system != "darwin":
        return PROVIDERS["jax-mps"]
    fitting = [p for p in preferred() if _fits(p, machine)]
    have = machine.version("jax")
    taking = [p for p in fitting if have and SpecifierSet(p.jax).contains(have, prereleases=True)]
    alive = [p for p in fitting if not p.jax_at_most]
    return (*taking, *alive, PROVIDERS["jax-mps"])[0]


def _advice(machine: Machine) -> str:
    where = "install one with" if machine.system == "darwin" else "on such a Mac, install a provider with"
    return f"{where}: {command(machine, advised(machine))}"


# For the registry -------------------------------------------------------------------------------------


def variants() -> dict[str, dict[str, str]]:
    """Every installed provider that the cheap rungs let through, and the variable that chooses it."""
    ladder = climb(read_machine(), choose=False)
    return {str(c.distribution): {ENVIRONMENT: c.distribution.name} for c in ladder.candidates if c.ok}
