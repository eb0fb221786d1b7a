"""The work of a plan's passes: what a model on a machine is expected to read and compute, for any placement.

    decode = sum over layers of [ common + max(experts elsewhere, shared expert) + sync + besides ] + head + fixed

Experts of a layer are elsewhere when its common weights are on a GPU and they are not; then the shared expert runs
meanwhile, and there is a hand-off. On one device everything is read one after the other. A prompt is cut into chunks;
experts in RAM are computed by the CPU or copied to the GPU, whichever takes less. The time of it all is said by
`bandwidth_model/roofline.py`; ranges come from asking it at the slow end, in the middle and at the fast end of every
figure that is not certain (`bandwidth_model/hardware.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...kernels.formats import KV_BF16, KVFormat
from ...loaders.architecture.architecture import Architecture, Layer
from ...loaders.quants.by_format import ByFormat
from ..bandwidth_model import flop_counts
from ..bandwidth_model.flop_counts import STATE_WIDTH, intensity
from ..bandwidth_model.hardware import ENDS, Device, End, Hardware, Range
from ..bandwidth_model.profile import mean_queries
from ..bandwidth_model.roofline import (
    Cache,
    Handoff,
    Link,
    Overhead,
    Step,
    Way,
    Weights,
    behind_the_last,
    in_turn,
    predict,
    side_by_side,
)
from ..ledger.passes import CPU_DRAM, H2D, Prediction
from ..placement.placement import channel
from ..placement.tier_memory import TierMemory
from ..units import size
from .articles import distinct_experts
from .layouts import CPU, DISK, Placement, table_of
from .storage import LayerBytes, Storage

CHUNK = {"cpu": 512, "gpu": 4096}  # tokens of a prompt in one pass
ACCEPTED, MOST_DRAFTED = (0.3, 0.6, 0.9), 8  # how often drafts come true; tokens of the longest
Distinct = Callable[[int, int], float]  # layer, tokens -> distinct experts that they choose


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is run: `batch` sequences that each have `context` tokens, and a prompt of `prompt` tokens before; kv: the
    format of the cache."""

    context: int
    batch: int
    prompt: int
    kv: KVFormat = KV_BF16


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Where a drafted token is right with probability `accepted`: the best length of drafts, and how many times as
    many tokens a second it gives as none. rows: of the head that guesses choose among then; 0: guesses have no head."""

    accepted: float
    length: int
    gain: float
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """A way to guess. rows: of the head; token_s: seconds of a token for each sequence; nbytes: read for that; share:
    of the tokens that are right, how many can be said."""

    rows: int = 0
    token_s: float = 0.0
    nbytes: int = 0
    share: float = 1.0


def computed_again(rate: float, length: int) -> float:
    """How many tokens of a pass with a draft of this length the next pass is expected to compute once more, where a
    refused token makes a recurrent state be put back: the sequence's own and those that held before it. rate: how
    likely a token is right, those before it being so."""
    return sum(rate**a * (1 - rate) * (1 + a) for a in range(length))


def again_s(tokens: float, seconds: Callable[[int], float | None]) -> float:
    """What tokens that are computed again add to a pass, so many on average: between the whole numbers around. seconds:
    of a pass with so many tokens more; nothing is added where one of these is not known."""
    whole = int(tokens)
    plain, below, above = seconds(0), seconds(whole), seconds(whole + 1)
    if plain is None or below is None or above is None:
        return 0.0
    return max(0.0, below + (tokens - whole) * (above - below) - plain)


def gains(
    seconds: Sequence[float], ways: Sequence[Guessing] = (Guessing(),), put_back: bool = False
) -> tuple[Drafted, ...]:
    """What drafts gain where so often a drafted token is right, those before it being so, guessed the best way.
    seconds: of a pass with 0, 1, 2, ... tokens drafted behind each sequence's own. put_back: the model has recurrent
    states, so that tokens before a refused one are computed again."""

    def pass_s(rate: float, length: int, way: Guessing) -> float:
        again = computed_again(rate, length) if put_back else 0.0  # fewer than half of the longest draft
        return seconds[length] + length * way.token_s + again_s(again, seconds.__getitem__)

    def of(accepted: float, way: Guessing) -> Drafted:
        rate = accepted * way.share
        speeds = [sum(rate**j for j in range(d + 1)) / pass_s(rate, d, way) for d in range(len(seconds))]
        length = max(range(len(speeds)), key=lambda d: speeds[d])
        return Drafted(accepted=accepted, length=length, gain=speeds[length] / speeds[0], rows=way.rows)

    # Where none pays all gain as much: then the whole vocabulary is named.
    return tuple(max((of(rate, way) for way in ways), key=lambda one: (one.gain, one.rows)) for rate in ACCEPTED)


@dataclass(frozen=True, kw_only=True)
class Rated:
    """One placement with its memory and its times; the times are None where it does not fit or nothing is known."""

    placement: Placement
    memory: dict[str, TierMemory]
    decode: dict[End, Prediction] | None
    prefill: dict[End, Prediction] | None

    @property
    def fits(self) -> bool:
        return all(tier.fits for tier in self.memory.values())

    @property
    def lacks(self) -> str:
        """What is missing where it does not fit, as a person reads it."""
        return ", ".join(f"{name} lacks {size(tier.missing)}" for name, tier in self.memory.items() if not tier.fits)

    def decode_tok_s(self, batch: int) -> Range | None:
        """Tokens per second of all sequences together."""
        return None if self.decode is None else Range(*(batch / self.decode[end].seconds for end in ENDS))

    def prefill_tok_s(self, prompt: int) -> Range | None:
        return None if self.prefill is None else Range(*(prompt / self.prefill[end].seconds for end in ENDS))


class Model:
    """A model on a machine: the work of its passes for any placement. `distinct` may come from a trace of real
    routing."""

    def __init__(
        self, model: Architecture, storage: Storage, hardware: Hardware, distinct: Distinct | None = None
    ) -> None:
        self.model, self.storage, self.hardware = model, storage, hardware
        self.distinct = distinct

    def seconds(self, work: list[Step], end: End = "mid") -> Prediction:
        """What a pass takes on this machine."""
        return predict(work, self.hardware, end)

    def decode(self, placement: Placement, work: Workload, drafted: int = 0) -> list[Step]:
        """One step: a token for every sequence of the batch, and `drafted` behind each."""
        tokens = work.batch * (1 + drafted)
        steps = [in_turn(self.overhead(tokens, tokens))]
        for i in range(len(self.model.layers)):
            steps += self._decode_layer(i, placement, work, 1 + drafted)
        return [*steps, self.outside(placement, tokens, tokens)]

    def with_drafts(
        self, placement: Placement, work: Workload, ways: Sequence[Guessing] = (Guessing(),)
    ) -> tuple[Drafted, ...]:
        """What drafts gain, by how often a drafted token is right. ways: to guess; by default for nothing."""
        took = [self.seconds(self.decode(placement, work, d)).seconds for d in range(MOST_DRAFTED + 1)]
        return gains(took, ways, put_back=self.model.state_elements > 0)

    def overhead(self, tokens: int, rows: int) -> Overhead:
        """What a pass costs whatever it reads; rows: whose logits are wanted."""
        shared = sum(1 for sizes in self.storage.layers if sizes.shared)
        return Overhead(tokens, len(self.model.layers), shared, rows * self.model.vocab, rows)

    def outside(self, placement: Placement, tokens: int, rows: int) -> Step:
        """The head for so many rows, and what else lies outside of layers: read once; embeddings of the tokens."""
        read, embedded = self.storage.outside_in, self.storage.row_in.times(tokens)
        at, table = channel(placement.outside), channel(table_of(placement, self.storage, self.model.tied_head))
        both = ByFormat.sum([read, embedded]) if at == table else read
        head = Weights(at, both, rows * flop_counts.head_flops(self.model), rows)
        return in_turn(head) if at == table else in_turn(head, Weights(table, embedded, 0))

    def _decode_layer(self, i: int, placement: Placement, work: Workload, each: int) -> Iterator[Step]:
        """each: tokens of every sequence."""
        layer, sizes, batch = self.model.layers[i], self.storage.layers[i], work.batch
        at, experts_at, tokens = placement.common[i], placement.experts[i], work.batch * each
        common = self.common(i, at, tokens)
        cache = cache_of(layer, channel(at), work.context + each - 1, each, work.kv)
        all_caches = replace(cache, read=batch * cache.read, written=batch * cache.written, flops=batch * cache.flops)
        yield in_turn(common, all_caches)
        if layer.experts is None:
            return
        read = self.touched(i, tokens) * sizes.expert
        routed = Link(DISK, read) if experts_at == DISK else self.experts(i, experts_at, tokens)
        if experts_at == at:
            yield in_turn(routed)
            return
        # The shared expert, which is part of the common weights, runs while the others are read elsewhere.
        shared = replace(common, read=sizes.shared_in, flops=0)
        yield in_turn(replace(shared, times=-1))
        yield side_by_side((routed,), (shared,))
        yield in_turn(Handoff("sync"))

    def common(self, i: int, at: str, tokens: int) -> Weights:
        """All weights of a layer but its routed experts."""
        flops = tokens * flop_counts.layer_flops(self.model.layers[i])
        return Weights(channel(at), self.storage.layers[i].common_in, flops, tokens)

    def experts(self, i: int, at: str, tokens: int) -> Weights:
        """The routed experts of a layer that so many tokens choose."""
        layer, touched = self.model.layers[i], self.touched(i, tokens)
        each = tokens * layer.experts.top_k / touched if layer.experts else 1.0
        read, flops = self.storage.layers[i].expert_in.times(touched), tokens * flop_counts.expert_flops(layer)
        return Weights(channel(at), read, flops, each, experts=True)

    def touched(self, i: int, tokens: int) -> float:
        """Distinct experts that so many tokens choose in layer i: by the trace, else as for uniform routing."""
        experts = self.model.layers[i].experts
        if experts is None:
            return 0.0
        if self.distinct is not None:
            return min(float(experts.count), self.distinct(i, tokens))
        return distinct_experts(experts.count, experts.top_k, tokens)

    def prefill(self, placement: Placement, work: Workload) -> list[Step] | None:
        """A prompt from nothing; None where the compute of a device that must compute is not known."""
        chunk = min(work.prompt, CHUNK["gpu" if placement.outside != CPU else "cpu"])
        steps: list[Step] = []
        for done in range(0, work.prompt, chunk):
            found = self._chunk(placement, min(chunk, work.prompt - done), done, work)
            if found is None:
                return None
            steps += found
        return [*steps, self.outside(placement, 0, 1)]

    def _chunk(self, placement: Placement, tokens: int, before: int, work: Workload) -> list[Step] | None:
        """A chunk of a prompt; of the last layer's experts only the prompt's last token needs any, and of what else is
        behind its mixer on a CPU that was measured."""
        steps = [in_turn(self.overhead(tokens, 0))]
        for i, layer in enumerate(self.model.layers):
            at, is_last = placement.common[i], i == len(self.model.layers) - 1
            if self._device(at).flops is None:
                return None
            cache = cache_of(layer, channel(at), before + tokens, tokens, work.kv)
            needed = tokens if not is_last else int(before + tokens == work.prompt)
            is_measured = self._device(at).slowdown is not None
            few = behind_the_last(self.storage.layers[i].behind_in, tokens, needed) if is_last and is_measured else ()
            steps.append(in_turn(self.common(i, at, tokens), *few, cache))
            if layer.experts is not None and needed:
                ways = self._ways(i, at, placement.experts[i], needed)
                if not ways:
                    return None
                steps.append(ways)
        return steps

    def _ways(self, i: int, at: str, tier: str, tokens: int) -> Step:
        """A prompt's experts: computed where they lie (from the disk by the CPU), or copied to the GPU that has the
        common weights. None of the devices that could compute them may be known to: then there is no way."""
        experts = self.experts(i, at, tokens)
        holder = CPU if tier == DISK else tier
        disk: Way = ((Link(DISK, experts.bytes),),) if tier == DISK else ()
        found: list[Way] = []
        if (holder != CPU or self.hardware.cpu) and self._device(holder).flops is not None:
            found.append((*disk, (replace(experts, term=channel(holder)),)))
        gpu = self._device(at)
        if holder == CPU and at != CPU and gpu.link is not None and gpu.flops is not None:
            found.append((*disk, (Link(H2D, experts.bytes),), (experts,)))
        return tuple(found)

    def bytes_per_token(self, placement: Placement, work: Workload) -> dict[str, dict[str, int]]:
        """Bytes of a decode step by tier and group, divided by the batch: the ledger's groups."""
        common, experts = map(channel, placement.common), map(channel, placement.experts)
        table = table_of(placement, self.storage, self.model.tied_head)
        return self.bytes_by_place([*common], work, [*experts], channel(placement.outside), channel(table))

    def bytes_by_place(
        self, common: Sequence[str], work: Workload, experts: Sequence[str] | None = None, outside: str = CPU_DRAM,
        table: str = CPU_DRAM,
    ) -> dict[str, dict[str, int]]:  # fmt: skip
        """The same by any names of places: of each layer's common weights, of its experts (None: the same), of what
        is outside, and of the embedding."""
        found: dict[str, Counter[str]] = {}
        for i, layer in enumerate(self.model.layers):
            sizes = self.storage.layers[i]
            here = found.setdefault(common[i], Counter())
            here["dense"] += sizes.common
            here["kv"] += work.batch * cache_traffic(layer, work.context, work.kv)
            if layer.experts is not None:
                there = found.setdefault((common if experts is None else experts)[i], Counter())
                there["experts"] += round(self.touched(i, work.batch) * sizes.expert)
        last = found.setdefault(outside, Counter())
        last["head"] += self.storage.head
        last["dense"] += self.storage.outside - self.storage.head
        found.setdefault(table, Counter())["dense"] += work.batch * self.storage.rows
        return {
            tier: {group: round(size / work.batch) for group, size in groups.items() if size}
            for tier, groups in found.items()
        }

    def _device(self, tier: str) -> Device:
        if tier in (CPU, DISK):
            assert self.hardware.cpu is not None
            return self.hardware.cpu
        return self.hardware.gpus[int(tier.removeprefix("gpu"))]


def cache_of(layer: Layer, term: str, context: int, queries: int, kv: KVFormat) -> Cache:
    """A sequence's new tokens attend to its cache, which holds `context` then, and renew its state."""
    mixer = layer.mixer
    has_cache = mixer is not None and bool(mixer.caches)
    pairs = flop_counts.attention_flops(layer, context - (queries - 1) // 2, queries == 1)
    return Cache(
        term,
        read=cache_read(layer, context, kv),
        written=cache_written(layer, queries, context, kv),
        flops=queries * (pairs if has_cache else flop_counts.state_flops(layer)),
        intensity=intensity(mixer, queries, context, kv) if mixer is not None and has_cache else None,
        queries=mean_queries(queries, context),
        on_chip=queries > 1,
    )


def cache_traffic(layer: Layer, context: int, kv: KVFormat = KV_BF16) -> int:
    """Bytes of caches and states that one new token of a sequence reads and writes in a layer; `context` counts it."""
    return cache_read(layer, context, kv) + cache_written(layer, 1, context, kv)


def cache_read(layer: Layer, context: int, kv: KVFormat = KV_BF16) -> int:
    """Bytes of caches that a sequence's new tokens read in a layer, all of them together."""
    return kv.bytes(sum(cache.read(context) for cache in layer.mixer.caches)) if layer.mixer else 0


def cache_written(layer: Layer, tokens: int, context: int, kv: KVFormat = KV_BF16) -> int:
    """Bytes that new tokens write, the last ones of a context, and of a state that is read and written."""
    if layer.mixer is None:
        return 0
    before = context - tokens
    written = sum(cache.width * (context // cache.every - before // cache.every) for cache in layer.mixer.caches)
    return kv.bytes(written) + 2 * STATE_WIDTH * layer.mixer.state


def simple_seconds(model: Architecture, storage: Storage, hardware: Hardware) -> float | None:
    """The first article's sum at nominal bandwidths: common weights on the first GPU and routed experts in RAM, one
    after the other; no cache, no fixed cost, no compute."""
    gpu = hardware.gpus[0] if hardware.gpus else hardware.cpu
    ram = hardware.cpu or gpu
    if gpu is None or ram is None:
        return None
    routed = sum(_per_token(layer, sizes) for layer, sizes in zip(model.layers, storage.layers, strict=True))
    return storage.common / gpu.nominal + routed / ram.nominal


def _per_token(layer: Layer, sizes: LayerBytes) -> float:
    return layer.experts.top_k * sizes.expert if layer.experts else 0.0
