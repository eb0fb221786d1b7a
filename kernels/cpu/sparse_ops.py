"""The ops that choose keys as C++, as `backend.py` has the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _cpu
from ..context import Context
from . import prepare
from .prepare import F32, I32, I64, at


def _seen(k_P1Be: Tensor, e: int, tables_SM: Tensor, starts_S1: Tensor, contexts_S: Tensor) -> dict[str, Any]:
    """The keys that queries of e numbers choose from, and whose they are."""
    assert k_P1Be.shape[1] == 1, f"{k_P1Be.shape[1]} heads of keys"
    assert k_P1Be.shape[3] == e, f"queries of {e} on a cache of {k_P1Be.shape[3]}"
    S, M = tables_SM.shape
    return {
        "cache": prepare.cache(k_P1Be, k_P1Be), "tables": at(tables_SM, I32, S, M),
        "starts": at(starts_S1, I32, S + 1), "contexts": at(contexts_S, I32, S), "sequences": S, "table_len": M,
    }  # fmt: skip


class SparseOps:
    """Those of an engine's kernels, in a context."""

    context: Context

    def place_index_(
        self,
        k_P1Be: Tensor,
        k_Te: Tensor,
        weight_e: Tensor,
        bias_e: Tensor,
        eps: float,
        cos_Pr: Tensor,
        sin_Pr: Tensor,
        positions_T: Tensor,
        slots_T: Tensor,
    ) -> None:
        T, e = k_Te.shape
        assert k_P1Be.shape[3] == e, f"keys of {e} for a cache of {k_P1Be.shape[3]}"
        _cpu.place_index(
            self.context.native,
            k=at(k_Te, F32, T, e),
            norm=at(weight_e, F32, e),
            bias=at(bias_e, F32, e),
            eps=eps,
            cache=prepare.cache(k_P1Be, k_P1Be),
            rope=prepare.rope(cos_Pr, sin_Pr, e),
            positions=at(positions_T, I32, T),
            slots=at(slots_T, I64, T),
            tokens=T,
        )

    def choose_keys(
        self,
        q_TJe: Tensor,
        weights_TJ: Tensor,
        k_P1Be: Tensor,
        tables_SM: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        top: int,
    ) -> Tensor:
        batch = tables_SM, starts_S1, contexts_S
        return self._choose(q_TJe, weights_TJ, k_P1Be, *batch, top, rate=1, page=k_P1Be.shape[2], numbers=False)

    def choose_entries(
        self,
        q_TJe: Tensor,
        weights_TJ: Tensor,
        k_P1Be: Tensor,
        tables_SM: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        top: int,
        rate: int,
        page: int,
    ) -> Tensor:
        batch = tables_SM, starts_S1, contexts_S
        return self._choose(q_TJe, weights_TJ, k_P1Be, *batch, top, rate=rate, page=page, numbers=True)

    def _choose(
        self,
        q_TJe: Tensor,
        weights_TJ: Tensor,
        k_P1Be: Tensor,
        tables_SM: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        top: int,
        *,
        rate: int,
        page: int,
        numbers: bool,
    ) -> Tensor:
        T, J, e = q_TJe.shape
        out = torch.empty(T, top, dtype=I32)
        _cpu.choose_keys(
            self.context.native,
            q=at(q_TJe, F32, T, J, e),
            weights=at(weights_TJ, F32, T, J),
            **_seen(k_P1Be, e, tables_SM, starts_S1, contexts_S),
            heads=J,
            top=top,
            slots=out.data_ptr(),
            rate=rate,
            page=page,
            numbers=numbers,
        )
        return out

    def choose_blocks(
        self,
        q_TGe: Tensor,
        k_P1Be: Tensor,
        tables_SM: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        size: int,
        top: int,
        local: int,
    ) -> Tensor:
        T, G, e = q_TGe.shape
        assert size % k_P1Be.shape[2] == 0, f"blocks of {size} in pages of {k_P1Be.shape[2]}"
        out = torch.empty(T, G, top, dtype=I32)
        _cpu.choose_blocks(
            self.context.native,
            q=at(q_TGe, F32, T, G, e),
            **_seen(k_P1Be, e, tables_SM, starts_S1, contexts_S),
            groups=G,
            size=size,
            top=top,
            local=local,
            blocks=out.data_ptr(),
        )
        return out
