"""The providers of a JAX platform for Apple GPUs, as data: who they are and what each can do.

A provider is known by its distribution, never by the name of its platform: three claim ``mps``. What a release gets
wrong stands in `m2ml_jax_metal.known_bad`. Figures are those of the releases named in ``read_from``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Chooses a provider by its distribution. Naming one is also how those run that are never chosen by themselves.
ENVIRONMENT = "M2ML_JAX_METAL_PROVIDER"

_HALF_SUPPORTED = ("float4_e2m1fn", "int2", "uint2", "int4", "uint4")
_EIGHT_BITS = (
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_DOUBLE = ("float64", "complex128")


@dataclass(frozen=True)
class Provider:
    """What is true of every release that is let through.

    ``macos``, ``python`` and ``jax`` are what that release asks for, to advise by; an installed one is asked itself,
    but for ``jax_at_most``, which its metadata does not say. ``rank`` orders the choice; None is chosen only when
    named, and ``only_named`` says why; ``refused`` says why it never is. ``missing`` are dtypes it has not. ``waits``
    is whether ``block_until_ready`` waits. ``unsupported`` are patterns of what its errors say where it lacks an
    operation. ``environment`` is set before its library is loaded, where the user has not set it. ``proof`` is how far
    it was tried.
    """

    distribution: str
    platform: str
    page: str
    read_from: str
    macos: str
    python: str
    jax: str = ""
    jax_at_most: str = ""
    rank: int | None = None
    only_named: str = ""
    refused: str = ""
    missing: tuple[str, ...] = _DOUBLE
    callbacks: bool = False
    donation: bool = False
    waits: bool = True
    ops: str = "their definitions"
    proof: str = "not looked at"
    unsupported: tuple[str, ...] = ("UNIMPLEMENTED", "not supported", "not implemented")
    companions: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


_ALL = (
    Provider(
        "metaljax",
        "metal",
        page="https://github.com/eterevsky/metaljax",
        read_from="0.11.9",
        macos="27.0",
        python=">=3.12",
        jax=">=0.11,<0.12",
        rank=0,
        callbacks=True,
        donation=True,
        waits=False,
        ops="the textbook forms that it recognises",
        proof="lowering verified, not run on hardware",
        unsupported=("lowering failed", "UNIMPLEMENTED", "not supported", "unsupported"),
    ),
    Provider(
        "jax-mps",
        "mps",
        page="https://github.com/tillahoffmann/jax-mps",
        read_from="0.11.1",
        macos="14.0",
        python=">=3.12",
        jax=">=0.11,<0.12",
        rank=1,
        missing=(*_DOUBLE, *_HALF_SUPPORTED, *_EIGHT_BITS),
        ops="its fused calls, where they meet the op's contract",
        proof="lowering verified, not run on hardware",
        unsupported=("Unsupported operation", "unsupported", "Unsupported PJRT dtype", "UNIMPLEMENTED"),
    ),
    Provider(
        "jax-graft",
        "mtl",
        page="https://github.com/dfm/jax-graft",
        read_from="0.0.5",
        macos="26.0",
        python=">=3.12",
        jax=">=0.10",
        rank=2,
        callbacks=True,
        donation=True,
        companions=("metal-pjrt-core",),
        proof="lowering verified, not run on hardware",
    ),
    Provider(
        "jax-metal",
        "METAL",
        page="https://pypi.org/project/jax-metal/",
        read_from="0.1.1",
        macos="13.0",
        python=">=3.10,<3.14",
        jax=">=0.4.34,<=0.5.0",
        jax_at_most="0.5.0",
        rank=3,
        missing=(*_DOUBLE, "complex64", *_HALF_SUPPORTED, *_EIGHT_BITS),
        unsupported=("failed to legalize", "UNIMPLEMENTED", "not supported"),
        proof="models trained on a stand-in for its platform, not run on hardware",
        environment={"ENABLE_PJRT_COMPATIBILITY": "1"},
    ),
    Provider(
        "jax-metallib",
        "mps",
        page="https://pypi.org/project/jax-metallib/",
        read_from="0.10.1.0",
        macos="26.0",
        python="==3.13.*",
        jax=">=0.10,<0.11",
        only_named="its releases are rare and little is known of its numbers",
    ),
    Provider(
        "iree-metal",
        "iree_metal",
        page="https://pypi.org/project/iree-metal/",
        read_from="3.11.0.dev2026081801",
        macos="13.0",
        python="==3.12.*",
        only_named="it is a preview whose own pages disagree on the jax it needs",
    ),
    Provider(
        "applejax",
        "mps",
        page="https://pypi.org/project/applejax/",
        read_from="0.9.7",
        macos="14.0",
        python="==3.13.*",
        jax=">=0.9,<0.10",
        refused="it is no longer kept, overwrites files of jax-mps, and crashes on linear algebra in loops; "
        "use jax-mps in its place",
    ),
)

#: Every known provider by its distribution, those that are chosen first in the order of choice.
PROVIDERS: Mapping[str, Provider] = {p.distribution: p for p in _ALL}


def preferred() -> list[Provider]:
    """Those that may be chosen without being named, best first."""
    ranked = [(p.rank, p) for p in PROVIDERS.values() if p.rank is not None]
    return [p for _, p in sorted(ranked, key=lambda pair: pair[0])]


def support_table() -> str:
    """A Markdown table with a row per provider, for the README."""
    rows = ["| provider | JAX platform | needs | callbacks | donation | lacks | ops run by | how far it was tried |"]
    rows.append("|---" * 8 + "|")
    for p in PROVIDERS.values():
        if p.refused or p.only_named:
            what = f"refused: {p.refused}" if p.refused else f"only when named: {p.only_named}"
            rows.append(f"| {p.distribution} {p.read_from} | `{p.platform}` | | | | | | {what} |")
            continue
        needs = f"macOS {p.macos}, Python {p.python}, jax {p.jax}"
        lacks = ", ".join(f"`{d}`" for d in p.missing if d in (*_DOUBLE, "complex64")) + (
            ", 8 and 4 bits" if len(p.missing) > 3 else ""
        )
        can = " | ".join("yes" if able else "no" for able in (p.callbacks, p.donation))
        rows.append(
            f"| {p.distribution} {p.read_from} | `{p.platform}` | {needs} | {can} | {lacks} | {p.ops} | {p.proof} |"
        )
    return "\n".join(rows)
