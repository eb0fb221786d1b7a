"""The arithmetic of three articles on mixture-of-experts inference, as they have it.

Home speed:  seconds = active * bits/8 * (common/BW_gpu + experts * (1 - s)/BW_ram + experts * s/BW_gpu2)
Partial offload:  layers on the GPU = floor(free VRAM / (file size / layers))
"MoE Math Demystified: What Does 8x7B Actually Mean?" (Cerebras, October 2025): storage, FLOPs, cache and throughput
of a decoder with full multi-head attention, untied embeddings and no shared expert.

These are simplifications on purpose: `bandwidth_model/flop_counts.py` has the same quantities for a real architecture,
and `speed.py` a time with fixed costs and overlap. Units: parameters and tokens are counts, sizes bytes, bandwidths
bytes/s, compute FLOP/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import OptionError


def seconds_per_token(
    active: float,
    bits: float,
    common: float,
    gpu: float,
    ram: float,
    *,
    second_share: float = 0.0,
    second: float | None = None,
) -> float:
    """Seconds of one token, tier after tier. `common`: share of the active parameters on the GPU; `second_share`: share
    of the experts on a second GPU (or in the first one's spare memory) of bandwidth `second`."""
    read = active * bits / 8
    experts = read * (1 - common)
    fast = experts * second_share / second if second else 0.0
    return read * common / gpu + experts * (1 - (second_share if second else 0.0)) / ram + fast


@dataclass(frozen=True, kw_only=True)
class RuleOfThumb:
    """Layers on the GPU by file size alone: `fraction` before rounding, `layers` that fit, `n_cpu_moe` for the rest."""

    fraction: float
    layers: int
    n_cpu_moe: int


def rule_of_thumb(vram: float, used: float, file_size: float, layers: int) -> RuleOfThumb:
    """How many layers go to the GPU if all layers weigh the same. The article rounds 10.67 to 11, which does not fit:
    this rounds down."""
    if not (file_size > 0 and layers > 0):
        raise OptionError(f"a file of {file_size} bytes and {layers} layers has no size per layer: give both above 0")
    fraction = max(0.0, (vram - used) / (file_size / layers))
    fit = min(layers, math.floor(fraction))
    return RuleOfThumb(fraction=fraction, layers=fit, n_cpu_moe=layers - fit)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The article's decoder: `hidden` wide, `width` wide experts, `experts` of them, `top_k` active."""

    hidden: int
    width: int
    experts: int
    top_k: int
    layers: int
    vocab: int
    heads: int

    def block_parameters(self, experts: int | None = None) -> int:
        """Two norms with gain and bias, attention, router, `experts` experts (default: all)."""
        h, count = self.hidden, self.experts if experts is None else experts
        return 4 * h + 4 * h * h + h * self.experts + 3 * h * self.width * count

    @property
    def parameters(self) -> int:
        """All weights: 2 V h + L * block."""
        return 2 * self.vocab * self.hidden + self.layers * self.block_parameters()

    @property
    def active_parameters(self) -> int:
        """Weights read for a token: k experts a block, and the unembedding (of the embedding one row)."""
        return self.vocab * self.hidden + self.layers * self.block_parameters(self.top_k)

    def cache_bytes(self, context: int, width: float = 2) -> float:
        """2 p L S n d, with n d = h."""
        return 2 * width * self.layers * context * self.hidden

    def prefill_flops(self, tokens: int) -> float:
        """FLOPs of a prompt."""
        h, s = self.hidden, tokens
        attention = 8 * s * h * h + 4 * s * s * h + 3 * s * s * self.heads
        return self.layers * (s * self._other_flops + attention) + 2 * s * h * self.vocab

    def decode_flops(self, context: int) -> float:
        """FLOPs of one token that attends to `context` tokens."""
        h = self.hidden
        attention = 8 * h * h + 4 * context * h + 3 * context * self.heads
        return self.layers * (self._other_flops + attention) + 2 * h * self.vocab

    def context_of(self, flops: float) -> float:
        """The context at which a decoded token takes so many FLOPs."""
        slope = self.layers * (4 * self.hidden + 3 * self.heads)
        return (flops - self.decode_flops(0)) / slope

    @property
    def _other_flops(self) -> float:
        """One block and token but for attention: norms, rotation of a quarter of q and k, router, experts."""
        h, f, e = self.hidden, self.width, self.experts
        rope = 3 * 2 * h / 4
        return 2 * 7 * h + rope + 2 * h * e + 3 * e + self.top_k * (6 * h * f + f + 5 * f)


def memory_bound(bandwidth: float, read: float, batch: int = 1) -> float:
    """Tokens per second when `read` bytes a step decide."""
    return batch * bandwidth / read


def compute_bound(peak: float, flops: float) -> float:
    """Tokens per second when arithmetic decides."""
    return peak / flops


def crossover_batch(peak: float, bandwidth: float, width: float = 2) -> float:
    """Tokens from which a dense matrix is bound by compute: peak * p / (2 * bandwidth)."""
    return peak * width / (2 * bandwidth)


def expert_crossover_batch(peak: float, bandwidth: float, experts: int, top_k: int, width: float = 2) -> float:
    """The same for an expert, which sees top_k of `experts` tokens on average."""
    return crossover_batch(peak, bandwidth, width) * experts / top_k


def distinct_experts(experts: int, top_k: int, batch: float) -> float:
    """Distinct experts that a batch touches in a layer when routing is uniform: E (1 - (1 - k/E)^B)."""
    return float(experts * (1 - (1 - top_k / experts) ** batch))


def distinct_in_trace(layer: Sequence[Sequence[int]], batch: int) -> float:
    """The same from recorded routing of one layer, a list of ids for each token: the mean over runs of `batch`
    tokens."""
    if batch < 1 or len(layer) < batch:
        raise OptionError(
            f"a routing trace of {len(layer)} tokens has no batch of {batch}: record more, or ask for fewer"
        )
    runs = [layer[i : i + batch] for i in range(0, len(layer) - batch + 1, batch)]
    return sum(len({e for token in run for e in token}) for run in runs) / len(runs)


def expert_parallel_bytes(devices: int, batch: int, top_k: int, hidden: int, width: int = 2) -> float:
    """Bytes that one MoE layer sends each way between `devices`: (G - 1)/G * B k h p. A larger batch does not help."""
    return (devices - 1) / devices * batch * top_k * hidden * width


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the batch sweep."""

    batch: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.seconds


def sweep(
    model: Decoder, batches: Sequence[int], context: int, bandwidth: float, peak: float, width: float = 2
) -> list[Step]:
    """Time of a decode step by batch size: the larger of reading the weights once and computing every token. Distinct
    experts as for uniform routing, so that more experts are read as the batch grows."""
    steps = []
    for batch in batches:
        touched = distinct_experts(model.experts, model.top_k, batch)
        block = model.block_parameters(0) + 3 * model.hidden * model.width * touched
        read = width * (model.layers * block + model.vocab * model.hidden) + batch * model.cache_bytes(context, width)
        steps.append(Step(batch=batch, seconds=max(read / bandwidth, batch * model.decode_flops(context) / peak)))
    return steps
