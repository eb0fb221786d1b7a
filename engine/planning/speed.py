"""The time of a pass: every byte and every FLOP on the device where it lies, plus what a step costs besides.

    decode = sum over layers of [ common + max(experts elsewhere, shared expert) + sync + besides ] + head + fixed
    part   = max(bytes / bandwidth, FLOPs / compute)

Experts of a layer are elsewhere when its common weights are on a GPU and they are not; then the shared expert runs
meanwhile, and there is a hand-off. On one device everything is read one after the other. A prompt is cut into chunks;
experts in RAM are computed by the CPU or copied to the GPU, whichever takes less. Ranges come from evaluating the model
at the slow end, in the middle and at the fast end of every figure that is not certain (`bandwidth_model/hardware.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ...loaders.architecture.architecture import Architecture, Layer, Mixer
from ..bandwidth_model import flop_counts
from ..bandwidth_model.hardware import Device, End, Hardware
from ..bandwidth_model.profile import mean_queries
from ..bandwidth_model.roofline import part_seconds
from .articles import distinct_experts
from .layouts import CPU, DISK, Placement
from .storage import LayerBytes, Storage

CACHE_WIDTH, STATE_WIDTH = 2, 4  # bytes of an element: bf16 keys and values, float32 states
CHUNK = {"cpu": 512, "gpu": 4096}  # tokens of a prompt in one pass
LEDGER = {CPU: "cpu_dram", DISK: "disk", "gpu0": "gpu_hbm"}  # names of the ledger
Busy = defaultdict[str, float]  # seconds by tier
Distinct = Callable[[int, int], float]  # layer, tokens -> distinct experts that they choose


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is run: `batch` sequences that each have `context` tokens, and a prompt of `prompt` tokens before."""

    context: int
    batch: int
    prompt: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One pass at one end of the ranges: seconds in all, and busy seconds by tier (they may overlap)."""

    seconds: float
    by_tier: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The tier that is busy longest."""
        return max(self.by_tier, key=lambda tier: self.by_tier[tier])


def tier_name(tier: str) -> str:
    """The ledger's name: cpu_dram, gpu_hbm, gpu1_hbm, disk."""
    return LEDGER.get(tier, f"{tier}_hbm")


class Model:
    """A model on a machine: predicts passes for any placement. `distinct` may come from a trace of real routing."""

    def __init__(
        self, model: Architecture, storage: Storage, hardware: Hardware, distinct: Distinct | None = None
    ) -> None:
        self.model, self.storage, self.hardware = model, storage, hardware
        self.distinct = distinct

    def decode(self, placement: Placement, work: Workload, end: End = "mid") -> Estimate:
        """One step: a token for every sequence of the batch."""
        busy: Busy = defaultdict(float)
        seconds = self._fixed(work.batch, end, busy)
        for i in range(len(self.model.layers)):
            seconds += self._decode_layer(i, placement, work, end, busy)
        seconds += self._outside(placement, work.batch, work.batch, end, busy)
        return Estimate(seconds=seconds, by_tier=dict(busy))

    def _fixed(self, rows: int, end: End, busy: Busy) -> float:
        """What a pass costs once, and the logits of so many rows."""
        took = self.hardware.fixed.at(end) + rows * self.model.vocab * self.hardware.logit.at(end)
        busy["fixed"] += took
        return took

    def _outside(self, placement: Placement, tokens: int, rows: int, end: End, busy: Busy) -> float:
        """The head for so many rows, and what else lies outside of layers: read once; embeddings of the tokens."""
        read = self.storage.outside + tokens * self.storage.rows
        took = self._time(
            self._device(placement.outside), read, rows * flop_counts.head_flops(self.model), end, tokens=rows
        )
        busy[tier_name(placement.outside)] += took
        return took

    def _decode_layer(self, i: int, placement: Placement, work: Workload, end: End, busy: Busy) -> float:
        layer, sizes = self.model.layers[i], self.storage.layers[i]
        at, experts_at = placement.common[i], placement.experts[i]
        device, batch = self._device(at), work.batch
        common = self._time(device, sizes.common, batch * flop_counts.layer_flops(layer), end, tokens=batch)
        common += batch * self._cache_time(device, layer, work.context, 1, end)
        busy[tier_name(at)] += common
        common += self._besides(sizes, batch, end, busy)
        if layer.experts is None:
            return common
        routed = self._experts(i, experts_at, batch, end, busy)
        if experts_at == at:
            return common + routed
        shared = self._time(device, sizes.shared, 0, end, tokens=batch) if sizes.shared else 0.0
        sync = self.hardware.sync.at(end)
        busy["sync"] += sync
        return common - shared + max(routed, shared) + sync

    def _besides(self, sizes: LayerBytes, tokens: int, end: End, busy: Busy) -> float:
        """What a layer costs whatever it reads."""
        took = self.hardware.layer.at(end)
        took += self.hardware.more_tokens(tokens) if self.hardware.more_tokens is not None else 0.0
        took += self.hardware.shared.at(end) if sizes.shared else 0.0
        busy["fixed"] += took
        return took

    def _cache_time(self, device: Device, layer: Layer, context: int, queries: int, end: End) -> float:
        """Seconds in which a sequence's new tokens attend to its cache, which holds `context` then, and renew its
        state."""
        if device.cache_s is not None and layer.mixer is not None and layer.mixer.caches:
            read, written = cache_read(layer, context), cache_written(layer, queries)
            on_one = intensity(layer.mixer)
            known = read * device.cache_s(on_one * mean_queries(queries, context)) + written * device.cache_s(on_one)
            return known * {"low": 1 / 0.9, "mid": 1.0, "high": 1 / 1.1}[end]
        seen = context - (queries - 1) // 2
        flops = queries * flop_counts.attention_flops(layer, seen, queries == 1)
        rate = device.flops.at(end) if device.flops else math.inf
        if queries > 1:  # a prompt: its keys stay on the chip, and arithmetic bounds it
            return flops / rate
        return max(cache_traffic(layer, context) / device.reads("bf16", False).at(end), flops / rate)

    def _experts(self, i: int, tier: str, tokens: int, end: End, busy: Busy) -> float:
        """Seconds of the routed experts of a layer where they lie; from the disk they are read first."""
        layer, sizes = self.model.layers[i], self.storage.layers[i]
        read = self.touched(i, tokens) * sizes.expert
        flops = tokens * flop_counts.expert_flops(layer)
        if tier == DISK:
            assert self.hardware.disk is not None
            took = read / self.hardware.disk.bandwidth.at(end)
            busy["disk"] += took
            return took
        each = tokens * layer.experts.top_k / self.touched(i, tokens) if layer.experts else 1.0
        took = self._time(self._device(tier), read, flops, end, experts=True, tokens=each)
        busy[tier_name(tier)] += took
        return took

    def touched(self, i: int, tokens: int) -> float:
        """Distinct experts that so many tokens choose in layer i: by the trace, else as for uniform routing."""
        experts = self.model.layers[i].experts
        if experts is None:
            return 0.0
        if self.distinct is not None:
            return min(float(experts.count), self.distinct(i, tokens))
        return distinct_experts(experts.count, experts.top_k, tokens)

    def prefill(self, placement: Placement, work: Workload, end: End = "mid") -> Estimate | None:
        """A prompt from nothing; None where the compute of a device that must compute is not known."""
        chunk = min(work.prompt, CHUNK["gpu" if placement.outside != CPU else "cpu"])
        busy: Busy = defaultdict(float)
        seconds, done = 0.0, 0
        while done < work.prompt:
            tokens = min(chunk, work.prompt - done)
            took = self._chunk(placement, tokens, done, work.prompt, end, busy)
            if took is None:
                return None
            seconds, done = seconds + took, done + tokens
        seconds += self._outside(placement, 0, 1, end, busy)
        return Estimate(seconds=seconds, by_tier=dict(busy))

    def _chunk(self, placement: Placement, tokens: int, before: int, prompt: int, end: End, busy: Busy) -> float | None:
        """A chunk of a prompt; of the last layer's experts only the prompt's last token needs any."""
        seconds = self._fixed(0, end, busy)
        wanted = 1 if before + tokens == prompt else 0
        for i, layer in enumerate(self.model.layers):
            device, tier = self._device(placement.common[i]), placement.experts[i]
            if device.flops is None:
                return None
            flops = tokens * flop_counts.layer_flops(layer)
            common = self._time(device, self.storage.layers[i].common, flops, end, tokens=tokens)
            common += self._cache_time(device, layer, before + tokens, tokens, end)
            busy[tier_name(placement.common[i])] += common
            seconds += common + self._besides(self.storage.layers[i], tokens, end, busy)
            needed = tokens if i < len(self.model.layers) - 1 else wanted
            if layer.experts is not None and needed:
                routed = self._prefill_experts(i, placement.common[i], tier, needed, end, busy)
                if routed is None:
                    return None
                seconds += routed
        return seconds

    def _prefill_experts(self, i: int, at: str, tier: str, tokens: int, end: End, busy: Busy) -> float | None:
        """The cheapest way: computed where they lie, or copied to the GPU that has the common weights."""
        experts = self.model.layers[i].experts
        top_k = experts.top_k if experts else 0
        flops = tokens * flop_counts.expert_flops(self.model.layers[i])
        read = self.touched(i, tokens) * self.storage.layers[i].expert
        ways: list[tuple[float, str]] = []
        holder = (
            self._device(CPU if tier == DISK and self.hardware.cpu else tier)
            if tier != DISK or self.hardware.cpu
            else None
        )
        if holder is not None and holder.flops is not None:
            took = self._time(holder, read, flops, end, experts=True, tokens=tokens * top_k / self.touched(i, tokens))
            ways.append((took, tier_name(CPU if tier == DISK else tier)))
        gpu = self._device(at)
        if tier in (CPU, DISK) and at != CPU and gpu.link is not None and gpu.flops is not None:
            copied, computed = read / gpu.link.at(end), flops / gpu.flops.at(end)
            ways.append((max(copied, computed), "h2d" if copied > computed else tier_name(at)))
        if not ways:
            return None
        took, where = min(ways)
        if tier == DISK and self.hardware.disk is not None:
            loaded = read / self.hardware.disk.bandwidth.at(end)
            busy["disk"] += loaded
            took = max(took, loaded)
        busy[where] += took
        return took

    def bytes_per_token(self, placement: Placement, work: Workload) -> dict[str, dict[str, int]]:
        """Bytes of a decode step by tier and group, divided by the batch: the ledger's groups."""
        found: dict[str, Counter[str]] = {}
        for i, layer in enumerate(self.model.layers):
            sizes = self.storage.layers[i]
            here = found.setdefault(tier_name(placement.common[i]), Counter())
            here["dense"] += sizes.common
            here["kv"] += work.batch * cache_traffic(layer, work.context)
            if layer.experts is not None:
                there = found.setdefault(tier_name(placement.experts[i]), Counter())
                there["experts"] += round(self.touched(i, work.batch) * sizes.expert)
        last = found.setdefault(tier_name(placement.outside), Counter())
        last["head"] += self.storage.head
        last["dense"] += self.storage.outside - self.storage.head + work.batch * self.storage.rows
        return {
            tier: {group: round(size / work.batch) for group, size in groups.items() if size}
            for tier, groups in found.items()
        }

    def _device(self, tier: str) -> Device:
        if tier in (CPU, DISK):
            assert self.hardware.cpu is not None
            return self.hardware.cpu
        return self.hardware.gpus[int(tier.removeprefix("gpu"))]

    def _time(
        self, device: Device, read: float, flops: float, end: End, experts: bool = False, tokens: float = 1.0
    ) -> float:
        """Seconds of weights that `tokens` tokens (on average) are multiplied by."""
        format = self.storage.expert_format if experts else self.storage.dense_format
        return part_seconds(device, format, read, flops, end, experts, tokens)


def cache_traffic(layer: Layer, context: int) -> int:
    """Bytes of caches and states that one new token of a sequence reads and writes in a layer; `context` counts it."""
    return cache_read(layer, context) + cache_written(layer, 1)


def cache_read(layer: Layer, context: int) -> int:
    """Bytes of caches that a sequence's new tokens read in a layer, all of them together."""
    return CACHE_WIDTH * sum(cache.read(context) for cache in layer.mixer.caches) if layer.mixer else 0


def cache_written(layer: Layer, tokens: int) -> int:
    """Bytes that new tokens write, and of a state that is read and written."""
    if layer.mixer is None:
        return 0
    written = tokens * sum(cache.width // cache.every for cache in layer.mixer.caches)
    return CACHE_WIDTH * written + 2 * STATE_WIDTH * layer.mixer.state


def intensity(mixer: Mixer) -> float:
    """FLOPs of a decoded token's attention for a byte of its cache; with grouped queries the heads of a group."""
    pair = mixer.pair_flops if mixer.decode_pair_flops is None else mixer.decode_pair_flops
    return pair / (CACHE_WIDTH * mixer.caches[0].width)


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
