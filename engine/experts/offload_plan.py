"""Whether the experts in RAM that a pass chose go to the GPU to be computed there: all of them (streaming), or none.

    streaming pays where    distinct experts * bytes / link  <  the CPU's time for these tokens and experts
                                                                + hidden states there and back over the link

The copies take longer than computing from them, so that the GPU's own time does not count. Either side is idle while
the other works, so that both have their rates alone. With t tokens of even routing a layer of E experts, k a token, has
E (1 - (1 - k/E)^t) distinct ones. With many tokens a layer chooses nearly all of its experts; where the layer before
did, its first ones are copied before it has chosen. One `OffloadPlan` decides in the run and in predictions of bytes
alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...kernels import ExpertLayout
from ...kernels.context import THREADS, Context
from ...loaders.quants.by_format import ByFormat
from ...loaders.spec import ModelSpec
from ..bandwidth_model.hardware import core_flops
from ..bandwidth_model.link_rate import LinkRate, link_rate
from ..bandwidth_model.profile import Profile
from ..bandwidth_model.split_decode import Expert
from ..config import EngineConfig
from ..devices.device import Device
from ..placement.placement import Placement, Tier
from .streaming import piece_of, prefetch_experts

F32 = 4
PREFETCH_SHARE = 0.95  # of a layer's experts in RAM chosen: then the next layer is taken to choose as many


@dataclass(frozen=True)
class MeanExpert:
    """An expert as large as those of all layers are on average."""

    bytes: float
    bytes_by_format: Mapping[str, float]

    @classmethod
    def of(cls, layouts: Sequence[ExpertLayout]) -> MeanExpert:
        sums = ByFormat.of(pair for layout in layouts for pair in layout.bytes_by_format.items())
        mean = sums.times(1 / len(layouts))
        return cls(mean.total, dict(mean.parts))


@dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """What is copied. stream_from: tokens of a layer from which on all chosen experts in RAM are; None: never. piece:
    experts of a buffer. expert: bytes of the largest. prefetch_share: of a streamed layer's experts in RAM that must
    have been chosen for the next layer's first ones to be copied unasked; None: never. notes: what was decided and
    why, for people."""

    stream_from: int | None = None
    piece: int = 0
    expert: int = 0
    hidden: int = 0
    prefetch_share: float | None = PREFETCH_SHARE
    notes: tuple[str, ...] = field(default=())

    def streams(self, tokens: int) -> bool:
        """Whether a layer of so many tokens leaves the CPU nothing."""
        return self.stream_from is not None and tokens >= self.stream_from

    def prefetches(self, chosen: int, in_ram: int) -> bool:
        """Whether the first experts of the next layer are copied before its choices, by those of a streamed layer."""
        return self.prefetch_share is not None and chosen >= self.prefetch_share * in_ram > 0

    def prefetched(self, in_ram: int) -> int:
        """How many these are, of a layer with so many in RAM."""
        return prefetch_experts(self.piece, in_ram)

    def without_prefetch(self, why: str) -> OffloadPlan:
        """The same, and nothing is copied before it was chosen."""
        return replace(
            self, prefetch_share=None, notes=(*self.notes, f"no expert is copied before it was chosen: {why}")
        )

    def buffer_bytes(self, tokens: int) -> int:
        """What the GPU holds for it: two buffers, and the sum of up to so many tokens; 0 where nothing is copied."""
        if not self.streams(tokens):
            return 0
        return 2 * self.piece * self.expert + tokens * self.hidden * F32


NONE = OffloadPlan()


def next_in_ram(placement: Placement, layer: int) -> int | None:
    """The next layer with experts in RAM; None where that is the last of the model, which is for the rows alone whose
    logits are wanted."""
    last = len(placement.experts) - 1
    return next((n for n in range(layer + 1, last) if Tier.CPU in placement.experts[n]), None)


def plan(
    config: EngineConfig,
    spec: ModelSpec,
    layouts: Sequence[ExpertLayout],
    devices: Mapping[Tier, Device],
    profile: Profile | None,
) -> OffloadPlan:
    """What the options ask for, or what the rates of this machine say. layouts: of the layers with experts; buffers are
    for the largest, times for the mean of them."""
    main, most = devices[Tier.GPU0], max(config.prefill_chunk, config.max_sequences)
    link = link_rate(profile, main.place) if main.is_cuda else None
    largest, mean = max(layout.bytes for layout in layouts), MeanExpert.of(layouts)
    first, why = _stream_from(config, spec, mean, link, profile, most)
    when = "no pass" if first is None else f"passes from {first} tokens on"
    return OffloadPlan(
        stream_from=first,
        piece=piece_of(spec.moe.experts, largest),
        expert=largest,
        hidden=spec.hidden,
        notes=(f"experts in RAM are copied to gpu0 in {when} ({why})",),
    )


def _stream_from(
    config: EngineConfig,
    spec: ModelSpec,
    expert: Expert,
    link: LinkRate | None,
    profile: Profile | None,
    most: int,
) -> tuple[int | None, str]:
    asked = config.stream_from
    if asked != "auto":
        return (None if asked == "never" else int(asked)), "as asked"
    if link is None:
        return None, "a simulated GPU has no link; --stream-from N tries it"
    context = Context(threads=config.threads or THREADS)
    first = crossover(spec, expert, profile, link.bytes_s, most, context)
    more = f"; with up to {most} the CPU is faster" if first is None else ""
    return first, f"link {link.source}; {cpu_source(profile, context)}{more}"


# ---- the threshold


def distinct_of(spec: ModelSpec, tokens: int) -> float:
    """Distinct experts that so many tokens choose in a layer, with even routing."""
    experts = spec.moe.experts
    return experts * (1 - (1 - spec.moe.top_k / experts) ** tokens)


def each_of(spec: ModelSpec, tokens: int) -> float:
    """Tokens that a chosen expert serves on average."""
    return tokens * spec.moe.top_k / distinct_of(spec, tokens)


def crossover(
    spec: ModelSpec, expert: Expert, profile: Profile | None, link: float, most: int, context: Context
) -> int | None:
    """The fewest tokens from which on, up to `most`, copying a layer's experts takes less time than the CPU."""
    first = None
    for tokens in range(most, 0, -1):
        if copy_seconds(spec, expert, link, tokens) >= cpu_seconds(spec, expert, profile, link, tokens, context):
            break
        first = tokens
    return first


def copy_seconds(spec: ModelSpec, expert: Expert, link: float, tokens: int) -> float:
    return distinct_of(spec, tokens) * expert.bytes / link


def cpu_seconds(
    spec: ModelSpec, expert: Expert, profile: Profile | None, link: float, tokens: int, context: Context
) -> float:
    """The CPU's experts, and hidden states on their way down and up."""
    return experts_seconds(spec, expert, profile, tokens, context) + 2 * tokens * spec.hidden * F32 / link


def experts_seconds(spec: ModelSpec, expert: Expert, profile: Profile | None, tokens: int, context: Context) -> float:
    """Without a profile by arithmetic alone, as `headrace plan` takes it for cores of a kind, since nobody knows how
    fast the memory is. With few tokens that is too short, which leaves them to the CPU."""
    if profile is None:
        flops = 2 * 3 * spec.hidden * spec.moe.width
        return tokens * spec.moe.top_k * flops / assumed_flops(context)
    rate = profile.experts_rate(ByFormat.of(expert.bytes_by_format), each_of(spec, tokens))
    return distinct_of(spec, tokens) * expert.bytes / rate


def assumed_flops(context: Context) -> float:
    """Of this CPU, a second, by the kind and number of its cores."""
    return core_flops(context.isa).times(context.threads).mid


def cpu_source(profile: Profile | None, context: Context) -> str:
    """For people: where the CPU's time comes from."""
    if profile is None:
        cores = f"{context.threads} cores of {context.isa}, {assumed_flops(context) / 1e12:.2f} TFLOP/s"
        return f"this CPU is not measured (headrace measure), {cores} assumed"
    return "CPU measured, with other kernels (headrace measure)" if profile.is_stale else "CPU measured"
