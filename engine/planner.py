"""From what a model is to the bytes a pass must read, and from bytes to seconds; before a run, or for any routing.

    bytes = distinct experts * bytes of an expert        experts
          + every matrix that each token needs            dense
          + keys and values of the context, read + written   kv
          + the head, if logits are wanted                head
    seconds = sum over groups of bytes / bandwidth of the kernel that reads that format
            + layers * what a layer costs besides + what a pass costs besides

The ledger counts the same bytes from the objects that were touched; the two agree to the byte. The second sum is the
bandwidth model of one tier. Models that are not loaded, and machines with more tiers, are the business of `planning/`,
which counts the same bytes and takes the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..kernels import ExpertLayout
from ..loaders.spec import ModelSpec
from ..loaders.weights import Formats, LayerWeights, ModelWeights, allocate
from .kvcache import bytes_per_token
from .ledger import CPU_DRAM, Bytes, Pass, Prediction, in_turn
from .profile import Profile, mean_queries

EXPERTS, DENSE, KV, HEAD = "experts", "dense", "kv", "head"
# What crosses a link besides hidden states of experts: choices and their weights, a pass's inputs, what sampling needs,
# experts that were copied before it was known that nobody would choose them.
ROUTING, INPUTS, SAMPLES, UNCHOSEN = "routing", "inputs", "samples", "unchosen"
GROUPS = (EXPERTS, UNCHOSEN, DENSE, KV, HEAD, ROUTING, INPUTS, SAMPLES)
# Terms of a prediction that no tier causes: layers and the pass; handing a layer's experts from a GPU to the CPU.
FIXED, HANDOFF = "fixed", "handoff"


def pass_bytes(
    spec: ModelSpec,
    formats: Formats,
    kv_dtype: torch.dtype,
    *,
    tokens: int,
    contexts: Sequence[int],
    distinct_experts: Sequence[int],
    logits: bool = True,
) -> Bytes:
    """Bytes of one pass with everything in RAM: `tokens` new tokens, the cache lengths after the pass by sequence, and
    how many distinct experts each MoE layer chose (0 in the last, if it is one, where no logits are wanted)."""
    weights = allocate(spec, formats, "meta")
    banks = [layer.experts for layer in weights.layers if layer.experts is not None]
    sizes, token_bytes = dense_sizes(weights), bytes_per_token(spec, kv_dtype)
    groups = {EXPERTS: sum(n * bank.layout.bytes for n, bank in zip(distinct_experts, banks, strict=True))}
    common = common_bytes(sizes, token_bytes, tokens=tokens, context=sum(contexts), logits=logits)
    return {CPU_DRAM: {**groups, **common[CPU_DRAM]}}


@dataclass(frozen=True)
class DenseSizes:
    """What the dense part of a pass is made of, in bytes: all layers with the final norm, of it what follows the last
    layer's keys and values, one row of the embedding; how many layers there are; and the head."""

    layers: int
    tail: int
    embedding_row: int
    count: int
    head: int


def dense_sizes(weights: ModelWeights) -> DenseSizes:
    """The sizes of a model, of real weights or of such on the `meta` device."""
    last = weights.layers[-1]
    before_tail = [last.attn_norm, last.qkv_bias, last.q_norm, last.k_norm, last.qkv]
    tail = layer_dense_bytes(last) - sum(part.nbytes for part in before_tail if part is not None)
    return DenseSizes(
        layers=sum(map(layer_dense_bytes, weights.layers)) + weights.final_norm.nbytes,
        tail=tail + weights.final_norm.nbytes,
        embedding_row=weights.embed.format.row_bytes(weights.embed.cols),
        count=len(weights.layers),
        head=weights.head.nbytes,
    )


def common_bytes(
    sizes: DenseSizes,
    token_bytes: int,
    *,
    tokens: int,
    context: int,
    logits: bool,
    home: str = CPU_DRAM,
    table: str = CPU_DRAM,
) -> Bytes:
    """What a pass reads besides routed experts, by group; `home`: the memory of it all, `table`: that of the
    embedding."""
    rows = tokens * sizes.embedding_row
    groups = {
        DENSE: dense_bytes(sizes, tokens, logits) - (rows if table != home else 0),
        KV: kv_bytes(sizes, tokens, context, token_bytes, logits),
    }
    if logits:
        groups[HEAD] = sizes.head
    return {home: groups} if table == home else {home: groups, table: {DENSE: rows}}


def dense_bytes(sizes: DenseSizes, tokens: int, logits: bool) -> int:
    """Bytes of the weights that a pass reads, but for routed experts and head. A pass that nobody wants logits of ends
    with the keys and values of the last layer."""
    return sizes.layers + tokens * sizes.embedding_row - (0 if logits else sizes.tail)


def kv_bytes(sizes: DenseSizes, tokens: int, context: int, token_bytes: int, logits: bool) -> int:
    """Bytes of the cache: `tokens` written in every layer, `context` read in every layer that attends."""
    attending = sizes.count if logits else sizes.count - 1
    return tokens * token_bytes + context * token_bytes // sizes.count * attending


def layer_dense_bytes(layer: LayerWeights) -> int:
    """Bytes of one layer without its routed experts."""
    vectors = (layer.attn_norm, layer.qkv_bias, layer.q_norm, layer.k_norm, layer.o_bias, layer.mlp_norm)
    matrices = [layer.qkv, layer.o, layer.router, layer.shared_gate]
    if layer.mlp is not None:
        matrices += [layer.mlp.gate_up, layer.mlp.down]
    return sum(v.nbytes for v in vectors if v is not None) + sum(m.nbytes for m in matrices if m is not None)


def predict_terms(
    read: Bytes,
    profile: Profile,
    formats: Formats,
    kv_dtype: torch.dtype,
    spec: ModelSpec,
    tokens: int = 1,
    sequences: int | None = None,
) -> dict[str, float]:
    """What a `Predictor` says of one pass."""
    return Predictor(profile, formats, kv_dtype, spec)(read, tokens, sequences)


class _Rates(NamedTuple):
    """What passes of so many tokens have in common. Seconds: of a byte of dense weights, of the head, and of a cache
    for one query at a time; besides what is read. rows: tokens whose logits are wanted."""

    dense: float
    head: float
    cache: float
    besides: float
    rows: int


class Predictor:
    """Seconds of a pass on the CPU by what causes them: the tier that is read, at the bandwidths that this machine's
    kernels were measured to have, and `FIXED`, what layers and the pass cost besides.

    Everything that passes of as many tokens have in common is worked out once.
    """

    def __init__(self, profile: Profile, formats: Formats, kv_dtype: torch.dtype, spec: ModelSpec) -> None:
        self.profile, self.formats, self.kv_dtype, self.spec = profile, formats, kv_dtype, spec
        self.token_bytes = bytes_per_token(spec, kv_dtype)
        self.rates: dict[tuple[int, int, bool], _Rates] = {}

    def __call__(self, read: Bytes, tokens: int = 1, sequences: int | None = None) -> dict[str, float]:
        """Of `tokens` new tokens of `sequences` (None: one each) that read these bytes."""
        groups = read.get(CPU_DRAM, {})
        count = tokens if sequences is None else sequences
        key = tokens, count, HEAD in groups
        rates = self.rates.get(key) or self.rates.setdefault(key, self._rates(*key))
        memory = 0.0
        for group, size in groups.items():
            if group == EXPERTS:
                memory += size * self._expert_seconds(size, tokens, rates.rows)
            elif group != KV:
                memory += size * {DENSE: rates.dense, HEAD: rates.head}[group]
        memory += self._cache_seconds(groups.get(KV, 0), rates, tokens, count)
        return {CPU_DRAM: memory, FIXED: rates.besides}

    def of(self, done: Pass) -> Prediction:
        """Of a pass that was made: one thing is done after the other."""
        return in_turn(self(done.bytes, done.tokens, len(done.sequences)))

    def _rates(self, tokens: int, sequences: int, has_head: bool) -> _Rates:
        profile, spec, dense = self.profile, self.spec, self.formats.dense.name
        shared = spec.moe_layers if spec.moe.shared_width else 0
        rows = sequences if has_head else 0
        return _Rates(
            dense=profile.slowdown(dense, tokens) / profile.linear[dense],
            head=profile.slowdown(dense, sequences) / profile.linear[dense],
            cache=profile.cache_seconds_per_byte(spec.attention.heads / spec.attention.kv_heads),
            besides=profile.besides(spec.layers, shared, tokens, rows * spec.vocab),
            rows=rows,
        )

    def _expert_seconds(self, size: int, tokens: int, rows: int) -> float:
        """Of a byte of routed experts."""
        name = self.formats.experts.name
        each = 1.0 if tokens == 1 else tokens_of_an_expert(size, self.formats, self.spec, tokens, rows)
        return self.profile.slowdown(name, each, experts=True) / self.profile.experts[name]

    def _cache_seconds(self, size: int, rates: _Rates, tokens: int, sequences: int) -> float:
        """Of attention: keys and values are written once by each token, and read by all tokens of a sequence together,
        each of which sees those before it."""
        if self.kv_dtype != torch.bfloat16:
            return size / self.profile.linear["f32"]
        spec, written = self.spec, min(size, tokens * self.token_bytes)
        together = rates.cache
        if tokens > sequences:
            attending = spec.layers if rates.rows else max(1, spec.layers - 1)
            context = (size - written) / self.token_bytes * spec.layers / attending / sequences
            on_one = spec.attention.heads / spec.attention.kv_heads
            together = self.profile.cache_seconds_per_byte(on_one * mean_queries(tokens / sequences, context))
        return written * rates.cache + (size - written) * together


def tokens_of_an_expert(read: float, formats: Formats, spec: ModelSpec, tokens: int, rows: int | None = None) -> float:
    """How many tokens an expert serves on average that was read: choices over distinct experts. In the last layer only
    those `rows` choose whose logits are wanted (None: all)."""
    layout = ExpertLayout(format=formats.experts, hidden=spec.hidden, width=spec.moe.width)
    distinct = read / layout.bytes
    choices = spec.moe.top_k * (tokens * spec.moe_layers - tokens + (tokens if rows is None else rows))
    return max(1.0, choices / distinct) if distinct else 1.0


def predict_seconds(
    read: Bytes,
    profile: Profile,
    formats: Formats,
    kv_dtype: torch.dtype,
    spec: ModelSpec,
    tokens: int = 1,
    sequences: int | None = None,
) -> float:
    """Seconds for the bytes of a pass on the CPU: the sum of `predict_terms`."""
    return sum(predict_terms(read, profile, formats, kv_dtype, spec, tokens, sequences).values())
