"""Counts of single experts for whoever asks: how many tokens each one served, and where it lies.

Numbers of all layers and experts are packed, in base64: as lists they would be a megabyte of JSON for a large model,
every two seconds.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from ...placement.placement import TIERS, Placement
from ..service import Service

NOWHERE = 255  # the tier of an expert of a dense layer


def as_json(service: Service) -> dict[str, Any]:
    """Counts since the model was loaded. prompt, generated: float64 [layers, experts], little endian, in base64; where:
    a byte for each expert, its place in `tiers`."""
    llm = service.llm
    found, spec, placement = llm.expert_counts, llm.spec, llm.parts.placement
    return {
        "layers": len(spec.layers),
        "experts": spec.moe.experts,
        "top_k": spec.moe.top_k,
        "passes": llm.ledger.account.count,
        "tiers": [tier.value for tier in TIERS],
        "where": base64.b64encode(where(placement, spec.moe.experts)).decode(),
        "prompt": _packed(found.prompt_LE),
        "generated": _packed(found.generated_LE),
    }


def where(placement: Placement, experts: int) -> bytes:
    """A byte for each layer and expert: the number of its tier, `NOWHERE` in dense layers."""
    rows = (bytes(map(TIERS.index, row)).ljust(experts, bytes([NOWHERE])) for row in placement.experts)
    return b"".join(rows)


def _packed(counts_LE: Tensor) -> str:
    """Exact up to 2 ** 53."""
    return base64.b64encode(counts_LE.to(torch.float64).numpy().astype("<f8").tobytes()).decode()
