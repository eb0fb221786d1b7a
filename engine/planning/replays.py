"""What policies would have done with a recorded trace: each policy and budget a row, with bytes and, on a machine of
known rates, tokens per second."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import OptionError
from ..bandwidth_model.hardware import Hardware
from ..bandwidth_model.split_decode import Curves, beside, best_fetch
from ..policies import registry
from ..policies.protocol import Shape
from ..policies.registry import Known
from ..policies.replay import fast
from ..policies.replay.choices import Choices, counts_of, of_passes
from ..policies.replay.replay import Rates, Replayed
from ..traces.reader import Trace
from ..units import GB

USUAL = "all-ram,uniform,frequency,lru,lfu,admit2,classes,belady"
SHARES = (0.1, 0.25, 0.5)  # of all experts, where no budget is said
CURVE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)  # the same for a picture


@dataclass(frozen=True, kw_only=True)
class Replays:
    """A trace as policies see it. known: what they may be made of."""

    shape: Shape
    choices: Choices
    known: Known
    rates: Rates | None

    def rows(self, policies: Sequence[str], budgets: Sequence[int]) -> Iterator[Replayed]:
        """Each policy with each budget, in bytes. Raises OptionError for a policy that cannot be made, PolicyError
        where one answers what cannot be done."""
        for budget in budgets:
            for name in policies:
                yield fast.replayed(registry.make(name, self.known), self.shape, budget, self.choices, self.rates)


def of_trace(trace: Trace, hardware: Hardware | None, with_prompts: bool = False) -> Replays:
    """The tokens that were generated, or all. Raises OptionError where there is none."""
    wanted = np.ones(len(trace), bool) if with_prompts else trace.generated
    if not wanted.any():
        raise OptionError("the trace has no generated token: add --with-prompts, or record more")
    header = trace.header
    shape = Shape((header.experts,) * len(header.layers), tuple(header.expert_bytes))
    ids_TLK = trace.ids[:, wanted].swapaxes(0, 1)
    choices, format = of_passes(ids_TLK, trace.passes[wanted]), header.formats["experts"]
    rates = None if hardware is None else rates_of(hardware, format)
    fetched = None if hardware is None or rates is None else _fetched(hardware, rates, shape, header.top_k, format)
    known = Known(counts=counts_of(ids_TLK, shape), future=choices, fetched=fetched)
    return Replays(shape=shape, choices=choices, known=known, rates=rates)


def rates_of(hardware: Hardware, format: str) -> Rates | None:
    """Of the first GPU, its link and the CPU; None where the machine lacks one of them."""
    gpu = hardware.gpus[0] if hardware.gpus else None
    if hardware.cpu is None or gpu is None or gpu.link is None:
        return None
    reads = (device.reads(format, experts=True).mid for device in (hardware.cpu, gpu))
    cpu, memory = reads
    return Rates(cpu=cpu, link=gpu.link.mid, gpu=memory)


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
    """Bytes of "8GB,16GB", "8,16" (GB) or "10%,25%" of all experts; without text these shares. Raises
    OptionError."""
    if text is None:
        return [int(share * shape.nbytes) for share in shares]
    return [_budget(word.strip(), shape) for word in text.split(",")]


def _budget(word: str, shape: Shape) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|GB|)", word, re.IGNORECASE)
    if found is None:
        raise OptionError(f"--vram has '{word}'; give gigabytes or shares of all experts, as 8GB,16GB or 10%,25%")
    number = float(found[1])
    return int(number / 100 * shape.nbytes if found[2] == "%" else number * GB)
