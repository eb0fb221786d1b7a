"""What a pass should take before it is known which experts it chooses: for the size of chunks beside text.

Experts are counted as for uniform routing, which is the most that so many tokens can be expected to choose.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

from ..bandwidth_model.reconcile import Reconciliation
from ..experts.backend import CpuExperts
from ..ledger.pass_bytes import EXPERTS, Span, common_bytes
from ..ledger.passes import CPU_DRAM, Pass
from ..planning.articles import distinct_experts
from .parts import EngineParts

REMEMBERED = 4096  # predictions by size of a pass
CONTEXT_STEP = 512  # contexts that count as one


class ExpectedPasses:
    """The passes of a model on the CPU alone; None where no rates are known, beside a GPU, where what is copied
    decides, and of layers on other machines."""

    def __init__(self, parts: EngineParts, predictions: Reconciliation) -> None:
        self.parts, self.predictions = parts, predictions
        self._seconds = lru_cache(REMEMBERED)(self._predict)
        self._drafted = lru_cache(REMEMBERED)(self._predict_drafted)

    def seconds(self, tokens: int, rows: int, context: int) -> float | None:
        """Of a pass with so many tokens of one prompt beside `rows` sequences that generate, each with up to so long a
        context."""
        return self._ask(tokens, rows, -(-context // CONTEXT_STEP) * CONTEXT_STEP, False)

    def full_read(self) -> float | None:
        """Of a pass of one token that reads every expert."""
        return self._ask(0, 1, 0, True)

    @cached_property
    def expert_bytes(self) -> int:
        """Of all experts, where they lie in RAM; 0 elsewhere."""
        experts = self.parts.decoder.experts
        if not isinstance(experts, CpuExperts):
            return 0
        banks = zip(experts.banks, experts.expert_bytes, strict=True)
        return sum(0 if bank is None else bank.experts * size for bank, size in banks)

    def drafted(self, sequences: int, drafted: int, context: int, share: float) -> float | None:
        """Of a pass of so many sequences with a token each and `drafted` ones more, all with so long a context, that
        reads this share of the experts. None also where the CPU's caches hold the model: reading does not bound it."""
        model = self.predictions.pass_model
        if model is None or self.predictions.in_caches or not self.expert_bytes:
            return None
        context = -(-context // CONTEXT_STEP) * CONTEXT_STEP
        # An answer takes half a millisecond: few that differ are asked for.
        return self._drafted(id(model), sequences, drafted, context, round(share, 2))

    def _predict_drafted(self, _model: int, sequences: int, drafted: int, context: int, share: float) -> float | None:
        each = [1 + drafted // sequences + (i < drafted % sequences) for i in range(sequences)]
        return self._of_spans([(n, context + n) for n in each], share)

    def _ask(self, tokens: int, rows: int, context: int, all_experts: bool) -> float | None:
        model, decoder = self.predictions.pass_model, self.parts.decoder
        if model is None or decoder.beyond is not None or not isinstance(decoder.experts, CpuExperts):
            return None
        return self._seconds(id(model), tokens, rows, context, all_experts)

    def _predict(self, _model: int, tokens: int, rows: int, context: int, all_experts: bool) -> float | None:
        spans = [(1, context + 1)] * rows + ([(tokens, context + tokens)] if tokens else [])
        moe, new = self.parts.spec.moe, tokens + rows
        share = 1.0 if all_experts else distinct_experts(moe.experts, moe.top_k, new) / moe.experts
        return self._of_spans(spans, share)

    def _of_spans(self, spans: list[Span], share: float) -> float | None:
        """Of a pass of sequences with so many new tokens and contexts, that reads this share of the experts."""
        model, decoder, new = self.predictions.pass_model, self.parts.decoder, sum(count for count, _ in spans)
        assert model is not None, "asked without rates"
        assert isinstance(decoder.experts, CpuExperts)
        read = common_bytes(decoder.sizes, decoder.cache.sizes, spans=spans, logits=True)
        banks = zip(decoder.experts.banks, decoder.experts.expert_bytes, strict=True)
        by_layer = tuple(0 if bank is None else round(share * bank.experts * size) for bank, size in banks)
        read[CPU_DRAM][EXPERTS] = sum(by_layer)
        done = Pass(
            index=0, phase="mixed", sequences=list(range(len(spans))), tokens=new, bytes=read, by_layer=by_layer,
            context=sum(context for _, context in spans),
        )  # fmt: skip
        found = model(done)
        return None if found is None else found.seconds
