"""What a pass of a run should take: its work, from the bytes that the ledger counted.

    pass    = inputs up + embedding rows + samples down + common + sum over layers with experts + fixed
    common  = dense weights, cache and head where they lie, without shared experts where experts have several tiers
    layer   = max(hidden states down + CPU's experts + sum up + hand-off,  copies + experts here + shared expert,
              second GPU)
    stream  = ids down + max(copies,  experts here + shared expert,  second GPU): one is copied, another computed

On the CPU alone all experts are one load, read in turn with the rest; of those that come from a disk the longer one
of reading and computing counts. Bytes are those of the routing that happened,
each format's at its own rate: an expert of several formats, or of a layer with others, is the sum over them.
Beside each other copies and the CPU's experts have what was measured, else the CPU what copies leave of a plain read
(`split_decode.py`). With hosts of experts a layer is as `network/hops.py` has it, with
whole layers there a pass as `network/stops.py`.
Not counted: launches of the GPU's kernels, and a hand-off whose cost is not known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ...kernels.formats import KVFormat
from ...loaders.architecture.of_spec import of_spec
from ...loaders.quants.by_format import ByFormat
from ...loaders.spec import AttentionSpec, CompressedSpec, LatentSpec, ModelSpec
from ...loaders.weights.model_weights import Formats
from ..ledger import in_formats
from ..ledger.pass_bytes import (
    DENSE,
    EXPERTS,
    HEAD,
    INPUTS,
    KV,
    Indexed,
    bytes_per_token,
    entries_of,
    of_token,
    reach_of,
    seen_at_most,
)
from ..ledger.pass_bytes import seen as seen_of
from ..ledger.passes import (
    CPU_DRAM,
    D2D,
    D2H,
    DISK,
    GPU1_HBM,
    GPU_HBM,
    H2D,
    HANDOFF,
    NET,
    Bytes,
    HostWork,
    LayerWork,
    Pass,
    Prediction,
)
from . import flop_counts, split_decode
from .hardware import Hardware, exactly
from .network.hops import Asked, Cost, Exchange, Network
from .network.stops import Route, Work
from .profile import mean_queries
from .roofline import (
    Cache,
    Handoff,
    Link,
    Load,
    Overhead,
    Step,
    Weights,
    behind_the_last,
    in_turn,
    predict,
    side_by_side,
)

ELEMENTS = KVFormat("elements", 16)  # a number counts as one


class PassModel:
    """Predicts passes of one model on the machine that runs it (`tier_rates.py`). handoff_s: seconds that handing a
    layer over costs in a decode step; None: not known. network: hosts of experts, where there are some."""

    def __init__(
        self,
        spec: ModelSpec,
        formats: Formats,
        kv_format: KVFormat,
        machine: Hardware,
        handoff_s: float | None = None,
        network: Network | None = None,
    ) -> None:
        self.network = network
        self.spec, self.formats, self.kv_format, self.handoff_s = spec, formats, kv_format, handoff_s
        self.machine = replace(machine, sync=exactly(handoff_s or 0.0))
        self.model, self.sizes = of_spec(spec), in_formats.of_model(spec, formats)
        self.main = GPU_HBM if machine.gpus else CPU_DRAM
        self.experts = Counter(layer.expert for layer in self.sizes.layers if layer.experts)  # -> layers with such ones
        self.token_bytes = bytes_per_token(spec, kv_format)
        shared = next((layer.parts for layer in self.model.layers if layer.experts is not None), ())
        self.shared_flops = 2 * sum(part.elements for part in shared if part.group == "shared")
        self.layer_flops = sum(map(flop_counts.layer_flops, self.model.layers))
        self.state_flops = sum(map(flop_counts.state_flops, self.model.layers))

    def __call__(self, done: Pass) -> Prediction | None:
        """The prediction of a pass whose bytes are booked; None for a prompt where the compute of a GPU is not known,
        where copies leave the CPU none of the memory's bandwidth, or where hosts of experts were not measured."""
        if done.tokens > len(done.sequences) and any(gpu.flops is None for gpu in self.machine.gpus):
            return None
        if done.total(NET):
            return self._on_hosts(done)
        if self.main == CPU_DRAM and done.layers:
            return self._from_disk(done)
        steps = [in_turn(*self._links(done), *self._common(done))]
        for work in done.layers:
            found = self._layer(work, done.phase == "decode")
            if found is None:
                return None
            steps += found
        whole = predict([*steps, in_turn(self._overhead(done))], self.machine)
        behind = sum(work.behind for work in done.layers)
        return self._with_copies(whole, behind) if behind else whole

    def _with_copies(self, found: Prediction, behind: int) -> Prediction:
        """With experts that came behind layers, for nobody: a pass is no shorter than its link is busy."""
        link_s = found.terms.get(H2D, 0.0) + Link(H2D, behind).seconds(self.machine)
        return Prediction(terms={**found.terms, H2D: link_s}, seconds=max(found.seconds, link_s))

    def _from_disk(self, done: Pass) -> Prediction | None:
        """A pass whose experts are read from a disk while those that are there are computed; None where its rate is not
        known."""
        read = done.total(DISK)
        if read and DISK not in self.machine.links:
            return None
        common = self._common(done)
        experts = [load for load in common if isinstance(load, Weights) and load.experts]
        others = [load for load in common if load not in experts]
        reading = side_by_side((Link(DISK, read),) if read else (), tuple(experts))
        return predict([in_turn(*others), reading, in_turn(self._overhead(done))], self.machine)

    def _on_hosts(self, done: Pass) -> Prediction | None:
        """A pass whose experts other machines compute, beside those that are here; None where the hosts were not
        measured."""
        network = self.network
        if network is not None and network.route is not None:
            return self._through(done, network.route)
        if network is None or network.costs is None:
            return None
        common = (load for load in self._common(done) if not (isinstance(load, Weights) and load.experts))
        steps = [in_turn(*self._links(done), *common)]
        for work in done.layers:
            asked = tuple(self._asked(work, one, network) for one in work.hosts)
            steps += self._beside_hosts(work, Exchange(asked))
            if asked:
                steps.append(in_turn(Cost(network.costs, work.tokens)))
        return predict([*steps, in_turn(self._overhead(done))], self.machine)

    def _beside_hosts(self, work: LayerWork, exchange: Exchange) -> list[Step]:
        """A layer's exchange beside what this machine computes meanwhile: on a GPU also the link to it."""
        size, own = self.sizes.layers[work.layer].shared, self._experts(work, CPU_DRAM)
        if self.main == CPU_DRAM:
            shared = Weights(CPU_DRAM, size, 0, work.tokens)
            return [in_turn(replace(shared, times=-1)), side_by_side((exchange,), (own, shared))]
        here = (self._experts(work, GPU_HBM), Weights(GPU_HBM, size, work.tokens * self.shared_flops))
        down, up = Link(D2H, _total(work.bytes, D2H)), Link(H2D, _total(work.bytes, H2D))
        return [in_turn(down), side_by_side((exchange,), (own,), here), in_turn(up)]

    def _through(self, done: Pass, route: Route) -> Prediction:
        """A pass whose layers are on several machines: these as they were measured, what is outside of layers from the
        rates of this one."""
        rows, head = self.sizes.row.times(done.tokens), done.bytes.get(CPU_DRAM, {}).get(HEAD, 0)
        ends = self._logit_rows(done)
        overhead = Overhead(done.tokens, 0, 0, ends * self.spec.vocab, ends)
        loads = (Weights(CPU_DRAM, rows, 0), Weights(CPU_DRAM, self.sizes.head.spread(head), 0, max(1, ends)), overhead)
        outside = predict([in_turn(*loads)], self.machine)
        is_prompt = done.tokens > len(done.sequences)
        work = Work(tokens=done.tokens, is_prompt=is_prompt, context=done.context)
        parts = route.parts(work)
        layers, own = route.seconds(work, parts), route.own_s(work, parts)
        here = outside.terms.get(CPU_DRAM, 0.0) + own
        terms = {**outside.terms, CPU_DRAM: here, NET: max(0.0, layers - own)}
        return Prediction(terms=terms, seconds=outside.seconds + layers)

    def _asked(self, work: LayerWork, one: HostWork, network: Network) -> Asked:
        """What a host did in a layer."""
        flops = one.pairs * flop_counts.expert_flops(self.model.layers[work.layer]) / self.spec.moe.top_k
        read = self.sizes.layers[work.layer].expert.times(one.experts)
        each = one.pairs / max(1, one.experts)
        return Asked(
            hop=network.hops[one.host], read=read, flops=flops, each=each, there=one.there, back=one.back,
            pieces=one.pieces,
        )  # fmt: skip

    def _links(self, done: Pass) -> list[Load]:
        """What a pass sends besides layers, and embedding rows that lie in RAM beside a GPU."""
        if self.main == CPU_DRAM:
            return []
        in_layers = sum(_total(work.bytes, D2H) for work in done.layers)
        return [
            Link(H2D, done.bytes.get(H2D, {}).get(INPUTS, 0)),
            Weights(CPU_DRAM, self.sizes.row.spread(done.bytes.get(CPU_DRAM, {}).get(DENSE, 0)), 0),
            Link(D2H, done.total(D2H) - in_layers),
        ]

    def _common(self, done: Pass) -> list[Load]:
        """All but the experts of several tiers, one after the other."""
        read, rows = done.bytes.get(self.main, {}), len(done.sequences)
        on_gpu = self.main != CPU_DRAM
        flops = done.tokens * (self.layer_flops - len(done.layers) * self.shared_flops) if on_gpu else 0
        head = rows * flop_counts.head_flops(self.model) if on_gpu and HEAD in read else 0
        found: list[Load] = [
            Weights(self.main, self._dense(done), flops, done.tokens),
            *self._caches(done, read.get(KV, 0)),
            Weights(self.main, self.sizes.head.spread(read.get(HEAD, 0)), head, rows),
        ]
        if not on_gpu and (experts := read.get(EXPERTS, 0)):
            each = 1.0 if done.tokens == 1 else self._tokens_of_an_expert(experts, done)
            found.append(Weights(CPU_DRAM, self._experts_by_format(experts, done), 0, each, experts=True))
        is_here = not on_gpu and not done.total(NET)
        if is_here and done.phase == "prefill" and (wanted := self._logit_rows(done)):
            found += behind_the_last(self.sizes.layers[-1].behind, done.tokens, wanted)
        return found

    def _dense(self, done: Pass) -> ByFormat:
        """What a pass reads of layers without routed experts, and of the embedding where it lies with them; without the
        shared experts of layers with several tiers. A pass without logits ends early: it reads less of each format."""
        size = done.bytes.get(self.main, {}).get(DENSE, 0)
        is_elsewhere = self.main != CPU_DRAM and DENSE in done.bytes.get(CPU_DRAM, {})
        rows = 0 if is_elsewhere else min(size, done.tokens * round(self.sizes.row.total))
        shared = [] if self.main == CPU_DRAM else [self.sizes.layers[work.layer].shared for work in done.layers]
        others = ByFormat.sum([self.sizes.dense, *(one.times(-1) for one in shared)])
        left = size - rows - round(sum(one.total for one in shared))
        return ByFormat.sum([self.sizes.row.spread(rows), others.spread(max(0, left))])

    def _experts_by_format(self, size: float, done: Pass) -> ByFormat:
        """So many bytes of experts on the CPU alone: by what each layer read, else as all layers were read alike."""
        if sum(done.by_layer) != size:
            return ByFormat.sum(one.times(layers) for one, layers in self.experts.items()).spread(size)
        sums: Counter[ByFormat] = Counter()
        for layer, read in zip(self.sizes.layers, done.by_layer, strict=True):
            sums[layer.expert] += read
        return ByFormat.sum(one.spread(read) for one, read in sums.items())

    def _caches(self, done: Pass, size: int) -> list[Load]:
        """Keys and values are written once by each token, and read by all tokens of a sequence together, each of which
        sees those before it; each layer's with as many FLOPs for a byte as its heads make of it. States are read and
        written by each sequence. A float32 cache is read as a matrix."""
        rows = max(1, len(done.sequences))
        states = min(size, 2 * flop_counts.STATE_WIDTH * self.spec.state_elements * rows)
        found: list[Load] = []
        if states:
            found.append(Cache(self.main, states, 0, done.tokens * self.state_flops))
        size -= states
        if self.main == CPU_DRAM and self.kv_format.name == "f32":
            return [*found, Weights(CPU_DRAM, ByFormat((("f32", size),)), 0)]
        written = min(size, done.tokens * self.token_bytes)
        queries, context = done.tokens // rows, done.context // rows
        seen = self._seen(queries, context)
        together, total = mean_queries(done.tokens / rows, done.context / rows), sum(seen.values())
        for flops_a_byte, part in seen.items():
            share = part / total
            flops = share * done.tokens * self._pair_flops(queries, context) if self.main != CPU_DRAM else 0
            read = share * (size - written), share * written
            found.append(Cache(self.main, *read, flops, flops_a_byte, together))
        return found

    def _seen(self, queries: int, context: int) -> Counter[float]:
        """By FLOPs for a byte, how much of a cache so many new tokens of a sequence see together, in elements."""
        seen: Counter[float] = Counter()
        for layer, kind in zip(self.spec.layers, self.model.layers, strict=True):
            mixer = layer.mixer
            if mixer is not None and mixer.cached and kind.mixer is not None:
                reach = seen_of((queries, context), reach_of(mixer))
                read = of_token(mixer) * max(1, reach)
                if isinstance(mixer, CompressedSpec) and mixer.rate:
                    read += entries_of(mixer, ELEMENTS).read([(max(1, queries), max(1, context))])
                if isinstance(mixer, (LatentSpec, AttentionSpec)) and (top := seen_at_most(mixer)) is not None:
                    chosen = Indexed(mixer.row, mixer.index_key, top)
                    read = chosen.read([(max(1, queries), max(1, reach))])
                seen[flop_counts.intensity(kind.mixer, queries, max(queries, context), self.kv_format)] += read
        return seen

    def _pair_flops(self, queries: int, context: int) -> int:
        """Of a token in all layers' attention on a GPU, which attends to latents in prompts too."""
        seen = context - (queries - 1) // 2
        return sum(flop_counts.attention_flops(layer, seen, decode=True) for layer in self.model.layers)

    def _logit_rows(self, done: Pass) -> int:
        """Tokens whose logits are wanted."""
        return len(done.sequences) if HEAD in done.bytes.get(self.main, {}) else 0

    def _tokens_of_an_expert(self, read: float, done: Pass) -> float:
        """How many tokens an expert serves on average that was read: choices over distinct experts. In the last layer
        only those rows choose whose logits are wanted."""
        spec, tokens = self.spec, done.tokens
        choices = spec.moe.top_k * (tokens * spec.moe_layers - tokens + self._logit_rows(done))
        expert = sum(one.total * layers for one, layers in self.experts.items()) / spec.moe_layers
        return max(1.0, choices * expert / read)

    def _overhead(self, done: Pass) -> Overhead:
        spec = self.spec
        shared = spec.moe_layers if spec.moe.shared_width else 0
        rows = self._logit_rows(done)
        return Overhead(done.tokens, len(spec.layers), shared, rows * spec.vocab, rows)

    def _layer(self, work: LayerWork, is_decode: bool) -> list[Step] | None:
        """One layer's experts on all tiers, with the shared one."""
        crossing = _total(work.bytes, H2D) - work.copied - work.behind
        down, up = Link(D2H, _total(work.bytes, D2H)), Link(H2D, crossing)
        shared = Weights(GPU_HBM, self.sizes.layers[work.layer].shared, work.tokens * self.shared_flops)
        here, copies = (self._experts(work, GPU_HBM), shared), Link(H2D, work.copied)
        crossed = _total(work.bytes, D2D)
        second = (Link(D2D, crossed), self._experts(work, GPU1_HBM)) if crossed else ()
        if work.is_streamed or CPU_DRAM not in work.bytes:
            return [in_turn(down), side_by_side(second, here, (copies,))]
        together = self._beside(self._experts(work, CPU_DRAM), copies)
        if together is None:
            return None
        cpu, copies = together
        handoff = (Handoff(HANDOFF),) if is_decode and self.handoff_s else ()
        return [side_by_side(second, (down, cpu, up, *handoff), (copies, *here))]

    def _experts(self, work: LayerWork, tier: str) -> Weights:
        """A tier's experts of a layer, for its choices of tokens."""
        size, pairs = work.bytes.get(tier, {}).get(EXPERTS, 0), work.pairs.get(tier, 0)
        flops = pairs * flop_counts.expert_flops(self.model.layers[work.layer]) / self.spec.moe.top_k
        one = self.sizes.layers[work.layer].expert
        each = max(1.0, pairs * one.total / size) if size else 1.0
        return Weights(tier, one.spread(size), flops if size else 0, each, experts=True)

    def _beside(self, cpu: Weights, copies: Link) -> tuple[Weights, Link] | None:
        """The CPU's experts and copies with what they keep beside each other; None if copies leave the CPU nothing."""
        if not copies.bytes or not cpu.bytes:
            return cpu, copies
        machine = self.machine
        device = machine.memories[CPU_DRAM]
        alone, link = cpu.bytes / cpu.seconds(machine), machine.links[H2D].mid
        kept = split_decode.kept_of(cpu.read, machine.kept, device.by_format)
        kernel = device.mean_rate(cpu.read, experts=True)
        found = split_decode.beside(alone, link, kernel=kernel, stream=device.nominal, kept=kept)
        return None if found is None else (replace(cpu, kept=found[0] / alone), replace(copies, kept=found[1] / link))


def _total(read: Bytes, tier: str) -> int:
    return sum(read.get(tier, {}).values())
