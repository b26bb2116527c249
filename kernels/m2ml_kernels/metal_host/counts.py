"""What a launch costs: bytes, operations, how accesses lie in memory, and the time an Apple GPU needs at the least.

A kernel compiled with ``Variant(counted=True)`` tells the runtime of every access and every block of code it enters.
What is counted are the accesses that a C++ compiler leaves at -O1: a value kept in a variable is loaded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2ml_kernels.metal_host.flops import Arithmetic, arithmetic_of
from m2ml_kernels.metal_host.places import places_of

if TYPE_CHECKING:
    from m2ml_kernels.metal_host.build import Kernel

#: A buffer of at most so many bytes is moved once, however often it is read: it stays in the second-level cache, which
#: has about 1 MB on an M2 Max (philipturner/metal-benchmarks dc2adc6).
CACHED = 64 * 1024
_SHARED = -1


@dataclass(frozen=True)
class Device:
    """A GPU as the roofline needs it: bytes and floating operations a second."""

    name: str
    bandwidth: float
    flops: float


#: 38 cores x 128 lanes x 2 x 1.398 GHz (philipturner/metal-benchmarks dc2adc6: 13,600 GOPS in float32); 400 GB/s is
#: Apple's figure (llama.cpp discussion 4167 lists it beside measurements).
M2_MAX = Device("M2 Max, 38 cores", 400e9, 13.6e12)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one buffer: all that was loaded and stored, and how many distinct ones."""

    name: str
    loaded: int
    stored: int
    distinct_loaded: int
    distinct_stored: int
    distinct: int

    @property
    def moved(self) -> int:
        """Bytes between the GPU and its memory: every access, but for a small buffer that stays in the cache."""
        if self.distinct <= CACHED:
            return self.distinct_loaded + self.distinct_stored
        return self.loaded + self.stored


@dataclass(frozen=True)
class Place:
    """The accesses that a line makes, a simdgroup at a time.

    ``spans`` are the 128-byte lines they take, or the turns of the banks of threadgroup memory, ``least`` those that so
    many bytes need.
    """

    file: str
    line: int
    verb: str
    memory: str
    count: int
    bytes: int
    spans: int
    least: int

    @property
    def share(self) -> float:
        return self.least / self.spans if self.spans else 1.0

    def __str__(self) -> str:
        what = "turns of the banks" if self.memory == "threadgroup memory" else "cache lines"
        return (
            f"{self.file}:{self.line}: {self.verb} {self.memory}: {self.spans:,} {what} where {self.least:,} would do"
        )


@dataclass(frozen=True)
class Counts:
    """What one launch did. ``operations`` are those of threadgroups and simdgroups, each counted once for its group."""

    buffers: Mapping[int, Traffic]
    threadgroup_bytes: int
    threadgroup_loaded: int
    threadgroup_stored: int
    operations: Mapping[str, int]
    places: Sequence[Place]
    arithmetic: Arithmetic | None

    @property
    def moved(self) -> int:
        return sum(traffic.moved for traffic in self.buffers.values())

    @property
    def distinct(self) -> int:
        """The least bytes that a launch with these accesses could move: each once in, once out."""
        return sum(traffic.distinct_loaded + traffic.distinct_stored for traffic in self.buffers.values())

    @property
    def flops(self) -> int:
        return self.arithmetic.flops if self.arithmetic else 0

    @property
    def coalesced(self) -> float:
        """The cache lines that device accesses need, as a share of those they take."""
        return _share(place for place in self.places if place.memory != "threadgroup memory")

    @property
    def free_of_conflicts(self) -> float:
        """The turns that accesses of threadgroup memory need, as a share of those they take."""
        return _share(place for place in self.places if place.memory == "threadgroup memory")

    @property
    def summary(self) -> str:
        """The figures in a line."""
        said = [f"{self.moved:,} bytes moved ({self.distinct:,} distinct)"]
        if self.arithmetic:
            said.append(f"{self.arithmetic.flops:,} flops and {self.arithmetic.functions:,} functions")
        said.append(f"cache lines {self.coalesced:.0%} used")
        if self.threadgroup_bytes:
            said.append(
                f"{self.threadgroup_bytes:,} bytes a threadgroup, banks {self.free_of_conflicts:.0%} free of conflicts"
            )
        said += [f"{count:,} {what}" for what, count in sorted(self.operations.items())]
        return f"{'; '.join(said)}; at least {self.floor() * 1e6:.2f} us on an {M2_MAX.name}"

    def floor(self, device: Device = M2_MAX) -> float:
        """Seconds a launch needs at the least on ``device``: for its bytes or its operations, whichever take longer."""
        return max(self.moved / device.bandwidth, self.flops / device.flops)


def _share(places: object) -> float:
    spans = least = 0
    for place in places:  # type: ignore[attr-defined]
        spans, least = spans + place.spans, least + place.least
    return least / spans if spans else 1.0


_VERBS = ("loads from", "stores to", "updates")


def read_counts(text: str, kernel: Kernel) -> Counts:
    """The counts that the runtime wrote of a launch of ``kernel``."""
    rows: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        kind, *fields = line.split("\t")
        rows.setdefault(kind, []).append(fields)
    names = kernel.signature.buffer_names()
    buffers = {}
    for fields in rows.get("buffer", ()):
        index, *numbers = map(int, fields)
        if index in names:
            buffers[index] = Traffic(names[index], *numbers)
    size, loaded, stored = map(int, rows["threadgroup"][0])
    operations = {what: int(count) for what, count in rows.get("operation", ())}
    blocks = Counter({int(at): int(count) for at, count in rows.get("block", ())})
    places = _places(rows.get("place", ()), kernel, names)
    return Counts(buffers, size, loaded, stored, operations, places, arithmetic_of(kernel.built.path, blocks))


def _places(rows: Sequence[Sequence[str]], kernel: Kernel, names: Mapping[int, str]) -> list[Place]:
    """One for each line, verb and memory, whatever number of instructions the compiler made of it."""
    sums: dict[tuple[str, int, str, str], list[int]] = {}
    where = places_of(str(kernel.built.path), sorted({int(row[0]) for row in rows}))
    for row in rows:
        at, region, verb, *numbers = map(int, row)
        file, line = where[at]
        file = kernel.file if file.endswith(f"/{kernel.file}") else file or kernel.file
        memory = "threadgroup memory" if region == _SHARED else names.get(region, str(region))
        total = sums.setdefault((file, line, _VERBS[verb], memory), [0, 0, 0, 0])
        for i, number in enumerate(numbers):
            total[i] += number
    return [Place(*key, *numbers) for key, numbers in sorted(sums.items())]
