"""Seconds of a pass on the CPU alone, from the bytes that it read and the profile of the machine."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...kernels import ExpertLayout
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import Formats
from ..ledger.pass_bytes import DENSE, EXPERTS, FIXED, HEAD, KV, bytes_per_token
from ..ledger.passes import CPU_DRAM, Bytes, Pass, Prediction, in_turn
from .profile import Profile, mean_queries


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
