"""Split decode: of the m chosen experts of a layer in RAM, f are copied to the GPU while the CPU computes m - f.

    T(f) = max(CPU(m - f), link(f) + GPU(f))        f in 1 .. m - 1, the smallest T; 0 where it gains too little

The CPU's kernels and the copies read the same DRAM. What each keeps of its rate beside the other is measured
(`measure/contention.py`). Where it was not, they are taken to get together no more than a plain read by all threads:
beside a copy the CPU has what the copy leaves of that, and no gain is promised that a kernel at the memory's limit
cannot have. f = m, the CPU idle, is not this file's case: `experts/offload_plan.py` decides from how many tokens on
all are copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...loaders.quants.by_format import ByFormat
from .link_rate import LinkRate
from .profile import Profile

GAIN = 0.1  # less than this share of the time is within what the curves are off by


class Expert(Protocol):
    """How large an expert is, in all and by format: a layout, or the mean of several."""

    @property
    def bytes(self) -> float: ...
    @property
    def bytes_by_format(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Seconds for 0, 1, ... experts: by the CPU, on the link and on the GPU, each alone; and by the CPU and on the link
    while both are used."""

    cpu: Sequence[float]
    link: Sequence[float]
    gpu: Sequence[float]
    cpu_beside: Sequence[float]
    link_beside: Sequence[float]


def best_fetch(curves: Curves, gain: float = GAIN) -> tuple[int, ...]:
    """By number of chosen experts how many of them to copy; 0 where that saves less than a share `gain` of the better
    one of the CPU alone and the GPU alone."""
    return tuple(_best(curves, chosen, gain) for chosen in range(len(curves.cpu)))


def _best(curves: Curves, chosen: int, gain: float) -> int:
    def seconds(fetched: int) -> float:
        return max(curves.cpu_beside[chosen - fetched], curves.link_beside[fetched] + curves.gpu[fetched])

    if chosen < 2:
        return 0
    best = min(range(1, chosen), key=seconds)
    alone = min(curves.cpu[chosen], curves.link[chosen] + curves.gpu[chosen])
    return best if seconds(best) <= (1 - gain) * alone else 0


def curves(profile: Profile, expert: Expert, link: LinkRate, each: float, most: int) -> Curves | None:
    """The curves for up to `most` experts that serve `each` tokens; None where the link or the GPU's memory was not
    measured, or what is left beside copies neither, and the link alone could take all of the memory's bandwidth."""
    read = ByFormat.of(expert.bytes_by_format)
    alone, kernel = profile.experts_rate(read, each), profile.experts_rate(read)
    kept = kept_of(read, link.kept, profile.rates(experts=True))
    shared = beside(alone, link.bytes_s, kernel=kernel, stream=profile.stream, kept=kept)
    if not link.is_measured or not link.gpu_bytes_s or shared is None:
        return None

    def at(rate: float) -> tuple[float, ...]:
        return tuple(n * expert.bytes / rate for n in range(most + 1))

    return Curves(
        cpu=at(alone),
        link=at(link.bytes_s),
        gpu=at(link.gpu_bytes_s),
        cpu_beside=at(shared[0]),
        link_beside=at(shared[1]),
    )


def kept_of(
    read: ByFormat, kept: Mapping[str, tuple[float, float]], rates: Mapping[str, float]
) -> tuple[float, float] | None:
    """The shares of their rates that the CPU's experts in these formats and copies keep beside each other: the CPU
    reads one format after the other. None: of one of them nobody knows."""
    if any(name not in kept for name, _ in read.parts):
        return None
    alone = {name: size / rates[name] for name, size in read.parts}
    shared = {name: seconds / kept[name][0] for name, seconds in alone.items()}
    took = sum(shared.values())
    return sum(alone.values()) / took, sum(seconds * kept[name][1] for name, seconds in shared.items()) / took


def beside(
    alone: float, link: float, *, kernel: float, stream: float, kept: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Bytes per second that the CPU's experts can read and a link carry while both are used; `alone`, `link`: by
    themselves; `kernel`: experts with one token each; `stream`: a plain read. As they were measured together (`kept`:
    the shares that either keeps); else the CPU has what copies leave of a plain read. None: they leave nothing."""
    if kept is not None:
        experts, copies = kept
        return min(alone, experts * kernel), copies * link
    left = stream - link
    return (min(alone, left), link) if left > 0 else None


def shared_how(expert: Expert, profile: Profile, link: LinkRate) -> str:
    """For people: where the rates of experts and copies beside each other come from."""
    found = kept_of(ByFormat.of(expert.bytes_by_format), link.kept, profile.rates(experts=True))
    if found is None:
        return "together no more than a plain read, assumed: headrace measure"
    experts, copies = found
    return f"together the CPU keeps {experts:.0%} of its rate and the link {copies:.0%}, measured"
