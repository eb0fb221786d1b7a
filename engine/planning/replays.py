"""What policies would have done with a recorded trace: each policy and budget a row, with bytes and, on a machine of
known rates, tokens per second."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import OptionError
from ...kernels.context import THREADS
from ..bandwidth_model.hardware import Hardware
from ..bandwidth_model.split_decode import Curves, beside, best_fetch
from ..policies import registry
from ..policies.protocol import Shape
from ..policies.registry import Known
from ..policies.replay import fast
from ..policies.replay.choices import Choices, counts_of, of_passes
from ..policies.replay.prompts import reads
from ..policies.replay.replay import NO_EVENTS, Events, Rates, Replayed
from ..sizes import gigabytes
from ..traces.layout import Header
from ..traces.reader import Trace
from ..units import GB

CEILING = "belady"  # no policy that brings experts when they are chosen has more hits
USUAL = "all-ram,uniform,frequency,lru,lfu,admit2,classes,belady"
SHARES = (0.1, 0.25, 0.5)  # of all experts, where no budget is said
CURVE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)  # the same for a picture


@dataclass(frozen=True, kw_only=True)
class Replays:
    """A trace as policies see it. known: what they may be made of. late: they answer a pass later, as where passes are
    graphs; but for the optimum, which stays the ceiling. events: what they are told between passes."""

    shape: Shape
    choices: Choices
    known: Known
    rates: Rates | None
    late: bool = False
    events: Events = field(default_factory=lambda: NO_EVENTS)

    def rows(self, policies: Sequence[str], budgets: Sequence[int]) -> Iterator[Replayed]:
        """Each policy with each budget, in bytes, as many at a time as there are cores: C++ lets other threads run, and
        each has a policy of its own. Raises OptionError for a policy that cannot be made, PolicyError where one answers
        what cannot be done."""
        asked = [(name, budget) for budget in budgets for name in policies]
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda one: self.row(*one), asked)

    def row(self, policy: str, budget: int) -> Replayed:
        """One of them."""
        late = self.late and policy != CEILING
        return fast.replayed(
            registry.make(policy, self.known), self.shape, budget, self.choices, self.rates, late, self.events
        )

    def halves(self) -> tuple[Replays, Replays]:
        """The first half of the passes and the others, both with the counts of the first: what is learned from a trace
        is tried on what was not in it. Raises OptionError for a single pass."""
        passes = self.choices.passes
        if passes < 2:
            raise OptionError("the trace has one pass, and half of it is to be learned from: record more")
        parts = self.choices.between(0, passes // 2), self.choices.between(passes // 2, passes)
        counts = parts[0].counts(self.shape.experts)
        first, second = (
            replace(self, choices=part, known=replace(self.known, counts=counts, future=part)) for part in parts
        )
        return first, second


def of_trace(
    trace: Trace, hardware: Hardware | None, with_prompts: bool = False,
    *, second_vram: int | None = None, dense_bytes: int = 0, in_turn: bool = False, late: bool = False,
) -> Replays:  # fmt: skip
    """The tokens that were generated, or all, as they were recorded, on a machine. second_vram: bytes for experts on a
    second GPU, default all of it; dense_bytes: of other weights that a pass reads on the first one. Raises OptionError
    where there is no token, or no second GPU."""
    header, format = trace.header, trace.header.formats["experts"]
    shape = shape_of(header)
    rates = None if hardware is None else rates_of(hardware, format)
    if hardware is None or rates is None:
        return of_run(trace, shape, rates, store_bytes=second_vram, with_prompts=with_prompts, late=late)
    if second_vram is not None and len(hardware.gpus) < 2:
        raise OptionError(f"--second-vram needs two GPUs, and {hardware.name} has one: name two, as in 2x rtx-3090")
    dense = hardware.gpus[0].reads(header.formats["dense"], experts=False).mid
    fixed_s = rates.fixed_s + dense_bytes / dense
    store = second_vram if len(hardware.gpus) < 2 or second_vram is not None else hardware.gpus[1].memory
    return of_run(
        trace, shape, replace(rates, fixed_s=fixed_s, in_turn=in_turn), store_bytes=store, with_prompts=with_prompts,
        fetched=_fetched(hardware, rates, shape, header.top_k, format), late=late,
    )  # fmt: skip


def of_run(
    trace: Trace, shape: Shape, rates: Rates | None,
    *, fetched: Sequence[int] | None = None, store_bytes: int | None = None, with_prompts: bool = False,
    late: bool = False,
) -> Replays:  # fmt: skip
    """A trace as a run of other formats and of its own rates sees it. shape: of that run; fetched, store_bytes: as
    `registry.Known` has them. Raises OptionError where there is no token, or the shape is of another model."""
    wanted = np.ones(len(trace), bool) if with_prompts else trace.generated
    if not wanted.any():
        raise OptionError("the trace has no generated token: add --with-prompts, or record more")
    if len(trace.header.layers) != shape.layers or trace.header.experts != max(shape.experts):
        kind = f"{len(trace.header.layers)} layers of {trace.header.experts} experts"
        raise OptionError(f"the trace is of {kind}, the model has {shape.layers} of {max(shape.experts)}: record it")
    ids_TLK = trace.ids[:, wanted].swapaxes(0, 1)
    choices = of_passes(ids_TLK, trace.passes[wanted])
    known = Known(counts=counts_of(ids_TLK, shape), future=choices, fetched=fetched, store_bytes=store_bytes)
    return Replays(shape=shape, choices=choices, known=known, rates=rates, late=late)


def seeded(found: Replays, trace: Trace) -> Replays:
    """The same where policies are told what prompts chose."""
    return replace(found, events=reads(trace.ids.swapaxes(0, 1), trace.passes, trace.generated))


def shape_of(header: Header) -> Shape:
    """Of the model as it was when it was recorded."""
    return Shape((header.experts,) * len(header.layers), tuple(header.expert_bytes))


def rates_of(hardware: Hardware, format: str) -> Rates | None:
    """Of the first GPU, its link and the CPU, and of a second GPU if there is one; None where the machine lacks one of
    the first three."""
    gpu = hardware.gpus[0] if hardware.gpus else None
    if hardware.cpu is None or gpu is None or gpu.link is None:
        return None
    cpu, memory, *others = (device.reads(format, experts=True).mid for device in (hardware.cpu, *hardware.gpus))
    ram = max(cpu, hardware.cpu.bandwidth.mid)
    return Rates(cpu=cpu, link=gpu.link.mid, gpu=memory, store=others[0] if others else 0.0, ram=ram)


def _fetched(hardware: Hardware, rates: Rates, shape: Shape, top_k: int, format: str) -> list[int]:
    """By missing experts of a layer how many to fetch beside the CPU: from shares that were measured together, else
    what a copy leaves of the CPU's rate."""
    shared = beside(
        rates.cpu, rates.link, kernel=rates.cpu, stream=rates.cpu, kept=hardware.kept.get(format)
    ) or (rates.cpu * 1e-3, rates.link)  # fmt: skip
    size = max(shape.expert_bytes)

    def at(rate: float) -> list[float]:
        return [n * size / rate for n in range(top_k + 1)]

    beside_cpu, beside_link = shared
    curves = Curves(cpu=at(rates.cpu), link=at(rates.link), gpu=at(rates.gpu), cpu_beside=at(beside_cpu),
                    link_beside=at(beside_link))  # fmt: skip
    return list(best_fetch(curves))


def budgets_of(text: str | None, shape: Shape, shares: Sequence[float] = SHARES) -> list[int]:
    """Bytes of "8GB,16GB", "8,16" (GB), "500MB" or "10%,25%" of all experts; without text these shares. Raises
    OptionError."""
    if text is None:
        return [int(share * shape.nbytes) for share in shares]
    return [_budget(word.strip(), shape) for word in text.split(",")]


def bytes_of(option: str, text: str | None, shape: Shape) -> int | None:
    """Bytes of one such word; None without one. Raises OptionError, which names the option."""
    return None if text is None else _budget(text.strip(), shape, option)


def _budget(word: str, shape: Shape, option: str = "--vram") -> int:
    if share := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", word):
        return int(float(share[1]) / 100 * shape.nbytes)
    known = gigabytes(word)
    if known is None:
        raise OptionError(f"{option} has '{word}'; give memory or shares of all experts, as 8GB, 512MB or 25%")
    return int(known * GB)
