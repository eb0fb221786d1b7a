"""What a pass on several tiers should take: from what it read and sent, and the rates of each tier.

    pass    = inputs up + embedding rows + common + sum over layers with experts + samples down + fixed
    common  = dense weights, cache and head on the GPU, without shared experts
    layer   = max(CPU's experts + hidden states down and up + hand-off,  experts here + shared expert,  second GPU)
    split   = of it the GPU's side also takes the copies, before it computes from them;
              beside each other both have what was measured, else the CPU what copies leave of a plain read
              (`split_decode.py`)
    stream  = max(copies, experts here + shared expert): while one is copied another is computed
    part    = max(bytes / bandwidth, FLOPs / compute)

Bytes are the ledger's, so that the prediction is of the routing that happened. Parts and FLOPs are those of plans
(`planning/speed.py`, `flop_counts.py`). Terms by tier add up to more than the pass where tiers work side by side.
Not counted: launches of the GPU's kernels, and a hand-off whose cost is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ...kernels import ExpertLayout
from ...loaders.architecture.of_spec import of_spec
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import Formats, ModelWeights
from ..ledger.pass_bytes import DENSE, EXPERTS, FIXED, HANDOFF, HEAD, INPUTS, KV
from ..ledger.passes import CPU_DRAM, D2D, D2H, GPU1_HBM, GPU_HBM, H2D, Bytes, LayerWork, Pass, Prediction
from . import flop_counts, split_decode
from .hardware import Device
from .roofline import part_seconds
from .tier_rates import Rates

Terms = defaultdict[str, float]
Computed = Callable[[str], float]  # a tier's experts of a layer: seconds


class TierModel:
    """Predicts passes of one model. shared: bytes of each layer's shared expert, 0 for none. handoff_s: seconds that
    handing a layer over costs in a decode step; None: not known."""

    def __init__(
        self, spec: ModelSpec, formats: Formats, rates: Rates, shared: Sequence[int], handoff_s: float | None = None
    ) -> None:
        self.formats, self.rates, self.shared, self.handoff_s = formats, rates, shared, handoff_s
        self.model = of_spec(spec)
        layout = ExpertLayout(format=formats.experts, hidden=spec.hidden, width=spec.moe.width)
        self.expert_bytes = layout.bytes

    def __call__(self, done: Pass) -> Prediction | None:
        """The prediction of a pass whose bytes are booked; None for a prompt where compute is not known, or where
        copies leave the CPU none of the memory's bandwidth."""
        if done.tokens > len(done.sequences) and not self.rates.knows_compute:
            return None
        terms: Terms = defaultdict(float)
        seconds = self._common(done, terms)
        for work in done.layers:
            took = self._layer(work, done.phase, terms)
            if took is None:
                return None
            seconds += took
        terms[FIXED] += self.rates.profile.pass_s
        return Prediction(terms=dict(terms), seconds=seconds + self.rates.profile.pass_s)

    def _common(self, done: Pass, terms: Terms) -> float:
        """All but the experts, one after the other."""
        home, rows = done.bytes.get(GPU_HBM, {}), len(done.sequences)
        dense = home.get(DENSE, 0) - sum(self.shared[work.layer] for work in done.layers)
        inside = sum(flop_counts.layer_flops(layer) for layer in self.model.layers)
        inside -= sum(self._shared_flops(work.layer) for work in done.layers)
        queries = done.tokens // max(1, rows)
        seen = done.context // max(1, rows) - (queries - 1) // 2
        attention = sum(flop_counts.attention_flops(layer, seen, queries == 1) for layer in self.model.layers)
        found = {
            H2D: done.bytes.get(H2D, {}).get(INPUTS, 0) / self.rates.up,
            CPU_DRAM: self._part(CPU_DRAM, done.bytes.get(CPU_DRAM, {}).get(DENSE, 0), 0, self.formats.embed.name),
            D2H: self._samples(done) / self.rates.down,
        }
        found[GPU_HBM] = (
            self._part(GPU_HBM, dense, done.tokens * inside)
            + self._part(GPU_HBM, home.get(KV, 0), done.tokens * attention)
            + self._part(GPU_HBM, home.get(HEAD, 0), rows * flop_counts.head_flops(self.model) if HEAD in home else 0)
        )
        return _add(terms, found)

    def _samples(self, done: Pass) -> int:
        """Bytes that come down besides those of layers."""
        in_layers = sum(_total(work.bytes, D2H) for work in done.layers)
        return done.total(D2H) - in_layers

    def _layer(self, work: LayerWork, phase: str, terms: Terms) -> float | None:
        """One layer's experts on all tiers, with the shared one."""
        rates, flops = self.rates, flop_counts.expert_flops(self.model.layers[work.layer])
        a_pair = flops / self._top_k(work.layer)

        def computed(tier: str) -> float:
            size, pairs = work.bytes.get(tier, {}).get(EXPERTS, 0), work.pairs.get(tier, 0)
            return self._experts(tier, size, pairs, a_pair)

        shared = self._part(GPU_HBM, self.shared[work.layer], work.tokens * self._shared_flops(work.layer))
        here, copies = computed(GPU_HBM) + shared, work.copied / rates.up
        down, up = _total(work.bytes, D2H) / rates.down, (_total(work.bytes, H2D) - work.copied) / rates.up
        terms[GPU_HBM] += here
        terms[H2D] += copies + up
        terms[D2H] += down
        second = self._second(work, computed, terms)
        if work.is_streamed or CPU_DRAM not in work.bytes:
            return down + max(copies, here, second)
        together = self._beside(computed(CPU_DRAM), copies, work)
        if together is None:
            return None
        cpu, copies_beside = together
        terms[H2D] += copies_beside - copies
        handoff = self.handoff_s or 0.0 if phase == "decode" else 0.0
        terms[CPU_DRAM] += cpu
        if handoff:
            terms[HANDOFF] += handoff
        return max(down + cpu + up + handoff, copies_beside + here, second)

    def _second(self, work: LayerWork, computed: Computed, terms: Terms) -> float:
        """The second GPU: hidden states there, its experts, its part of the sum back; 0 without."""
        crossed = _total(work.bytes, D2D)
        if not crossed:
            return 0.0
        assert self.rates.across, "two GPUs, and no rate between them"
        return _add(terms, {D2D: crossed / self.rates.across, GPU1_HBM: computed(GPU1_HBM)})

    def _beside(self, alone_s: float, copies_s: float, work: LayerWork) -> tuple[float, float] | None:
        """Seconds of the CPU and of the copies, beside each other; None if copies leave the CPU nothing."""
        size, rates = work.bytes[CPU_DRAM].get(EXPERTS, 0), self.rates
        if not work.copied or not size:
            return alone_s, copies_s
        found = split_decode.beside(rates.profile, self.formats.experts.name, size / alone_s, rates.up, rates.kept)
        return None if found is None else (size / found[0], work.copied / found[1])

    def _experts(self, tier: str, size: int, pairs: int, a_pair: float) -> float:
        """Seconds of a tier's experts for so many choices of tokens."""
        if not size:
            return 0.0
        each = max(1.0, pairs * self.expert_bytes / size)
        name = self.formats.experts.name
        return part_seconds(self._device(tier), name, size, pairs * a_pair, experts=True, tokens=each)

    def _part(self, tier: str, size: int, flops: float, format: str | None = None) -> float:
        """Seconds of other weights, or of the cache."""
        return part_seconds(self._device(tier), format or self.formats.dense.name, size, flops)

    def _device(self, tier: str) -> Device:
        return self.rates.cpu if tier == CPU_DRAM else self.rates.gpus[tier]

    def _shared_flops(self, layer: int) -> int:
        """Of one token in a layer's shared expert."""
        return 2 * sum(part.elements for part in self.model.layers[layer].parts if part.group == "shared")

    def _top_k(self, layer: int) -> int:
        experts = self.model.layers[layer].experts
        assert experts is not None, f"layer {layer} is dense"
        return experts.top_k


def shared_bytes(weights: ModelWeights) -> list[int]:
    """By layer the bytes of a shared expert."""
    found = []
    for layer in weights.layers:
        mlp = layer.mlp if layer.experts is not None else None
        found.append(0 if mlp is None else mlp.gate_up.nbytes + mlp.down.nbytes)
    return found


def _total(read: Bytes, tier: str) -> int:
    return sum(read.get(tier, {}).values())


def _add(terms: Terms, found: Mapping[str, float]) -> float:
    """Adds to the terms; the sum of what was added."""
    for tier, seconds in found.items():
        terms[tier] += seconds
    return sum(found.values())
