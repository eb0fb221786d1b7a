"""How many tokens were routed to each expert, by layer, apart for prompts and for text that was generated.

    all layers in one C++ call    the call counts while it has the ids (`ExpertCounts.tally`)
    layers one by one, graphs     from the choices of each layer, when the pass is booked (`ExpertCounts.add`)

Counted are the tokens of passes on the ledger, each once a layer that it went through: of a prompt only its last token
goes through the last layer. Rows that pad a batch belong to no sequence, and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.passes.tally import Tally
from ..placement.placement import Placement, Tier
from .backend import Chosen

PROMPT, GENERATED = 0, 1  # planes of the counts


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Counts at one moment: int64 [layers, experts], 0 for dense layers. prompt: tokens of prompts, generated: tokens
    that were fed back, which decode passes read experts for."""

    prompt_LE: Tensor
    generated_LE: Tensor

    @property
    def all_LE(self) -> Tensor:
        """Both together."""
        return self.prompt_LE + self.generated_LE


def by_tier(counts_LE: Tensor, placement: Placement) -> dict[Tier, int]:
    """Of counted choices how many fell on experts of each tier of a placement."""
    found = dict.fromkeys(placement.tiers, 0)
    for counts_E, row in zip(counts_LE.tolist(), placement.experts, strict=True):
        for count, tier in zip(counts_E, row, strict=False):  # an empty row: a dense layer
            found[tier] += count
    return found


def hottest(counts_LE: Tensor, placement: Placement, shares: Sequence[float]) -> list[float | None]:
    """Which share of all choices the hottest experts took, of every layer together: for each share of the experts
    (0.1: a tenth, at least one). None before the first choice."""
    counts = torch.cat([row_E[: len(tiers)] for row_E, tiers in zip(counts_LE, placement.experts, strict=True)])
    sums = counts.sort(descending=True).values.cumsum(0)
    if not len(sums) or not int(sums[-1]):
        return [None] * len(shares)
    return [int(sums[max(1, round(share * len(sums))) - 1]) / int(sums[-1]) for share in shares]


class ExpertCounts:
    """Counts of a model's experts, which grow by every pass."""

    def __init__(self, layers: int, experts: int) -> None:
        self.counts_2LE = torch.zeros(2, layers, experts, dtype=torch.int64)

    def tally(self, decoding: int, kept: tuple[int, int] | None = None) -> Tally:
        """What the call of a pass counts into, of whose tokens the first `decoding` were generated. kept: its tokens,
        and experts of one, if the choices themselves are wanted."""
        if kept is None:
            return Tally(counts_2LE=self.counts_2LE, decoding=decoding)
        shape = self.counts_2LE.shape[1], *kept
        ids, weights = torch.empty(shape, dtype=torch.int32), torch.empty(shape)
        return Tally(counts_2LE=self.counts_2LE, decoding=decoding, ids_LTK=ids, weights_LTK=weights)

    def add(self, layers: Sequence[Chosen], decoding: int) -> None:
        """Takes in what the layers of a pass chose, in memory of the host; decoding: as in `tally`."""
        experts = self.counts_2LE.shape[2]
        for plane, tokens in ((PROMPT, slice(decoding, None)), (GENERATED, slice(0, decoding))):
            places = [(one.ids_TK[tokens] + one.layer * experts).flatten() for one in layers]
            if places:
                at = torch.cat(places).long()
                self.counts_2LE[plane].view(-1).scatter_add_(0, at, torch.ones_like(at))

    def snapshot(self) -> Counted:
        """A copy, for any thread; of a pass under way it may have a part."""
        prompt_LE, generated_LE = self.counts_2LE.clone()
        return Counted(prompt_LE=prompt_LE, generated_LE=generated_LE)
