"""Counts of single experts for whoever asks: how many tokens each one served, and where it lies.

Numbers of all layers and experts are packed, in base64: as lists they would be a megabyte of JSON for a large model,
every two seconds.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from ...experts.cache import report
from ...llm import LLM
from ...placement.placement import TIERS, Placement
from ..service import Service

NOWHERE = 255  # the tier of an expert of a dense layer


def as_json(service: Service) -> dict[str, Any]:
    """Counts since the model was loaded. prompt, generated: float64 [layers, experts], little endian, in base64; where:
    a byte for each expert, its place in `tiers`."""
    llm = service.llm
    found, spec = llm.expert_counts, llm.spec
    return {
        "layers": len(spec.layers),
        "experts": spec.moe.experts,
        "top_k": spec.moe.top_k,
        "passes": llm.ledger.account.count,
        "tiers": [tier.value for tier in TIERS],
        "where": base64.b64encode(_where_now(llm)).decode(),
        "prompt": _packed(found.prompt_LE),
        "generated": _packed(found.generated_LE),
        **({} if llm.parts.expert_cache is None else {"cache": report.as_json(llm.parts.expert_cache)}),
    }


def _where_now(llm: LLM) -> bytes:
    """As `where`; what is in a cache lies in its memory."""
    placement, experts, cache = llm.parts.placement, llm.spec.moe.experts, llm.parts.expert_cache
    found = where(placement, experts)
    if cache is None:
        return found
    now, here_LE = bytearray(found), cache.slots.of_LE >= 0
    for layer, number in cache.number.items():
        for expert in here_LE[number].nonzero().flatten().tolist():
            now[layer * experts + expert] = TIERS.index(placement.main)
    return bytes(now)


def where(placement: Placement, experts: int) -> bytes:
    """A byte for each layer and expert: the number of its tier, `NOWHERE` in dense layers."""
    rows = (bytes(map(TIERS.index, row)).ljust(experts, bytes([NOWHERE])) for row in placement.experts)
    return b"".join(rows)


def _packed(counts_LE: Tensor) -> str:
    """Exact up to 2 ** 53."""
    return base64.b64encode(counts_LE.to(torch.float64).numpy().astype("<f8").tobytes()).decode()
