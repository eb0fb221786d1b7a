"""The plain twins of the ops that choose keys, in pure torch.

Shapes are those of `reference.py`; besides: J heads of the indexer, e the size of its queries and keys, O keys that are
seen at most.
"""

from __future__ import annotations

import torch
from torch import Tensor


def place_index_(
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
    """Writes the indexer's keys of new tokens into its cache [P, 1, B, e]: LayerNorm, then the first 2r dims rotated.
    k, float32 [T, e], is used up."""
    k_Te = torch.nn.functional.layer_norm(k_Te, k_Te.shape[1:], weight_e, bias_e, eps)
    r, page = cos_Pr.shape[1], k_P1Be.shape[2]
    cos, sin = cos_Pr[positions_T.long()], sin_Pr[positions_T.long()]
    a, b = k_Te[:, :r].clone(), k_Te[:, r : 2 * r].clone()
    k_Te[:, :r], k_Te[:, r : 2 * r] = a * cos - b * sin, b * cos + a * sin
    k_P1Be[slots_T // page, 0, slots_T % page] = k_Te.to(k_P1Be.dtype)


def choose_keys(
    q_TJe: Tensor,
    weights_TJ: Tensor,
    k_P1Be: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    top: int,
) -> Tensor:
    """Where in the cache the keys lie that new tokens see: int32 [T, top], slots in the order of positions, -1 behind
    the last.

    Sequences, pages and slots are those of `attention` and `place_qkv_`. A token sees the `top` keys up to its own with
    the largest score, of equal ones the earlier; all where there are no more. A key's score is

        sum over heads of weight * max(0, q . k)

    which no factor above 0 would change the order of. Source: DeepSeek-V3.2-Exp (equation 1).
    """
    found = torch.full((len(q_TJe), top), -1, dtype=torch.int32, device=q_TJe.device)
    page = k_P1Be.shape[2]
    for s, context in enumerate(contexts_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        pages = tables_SM[s, : -(-context // page)].long()
        places = torch.arange(context, device=q_TJe.device)
        slots = pages[places // page] * page + places % page
        k_Ce = k_P1Be[pages, 0].flatten(0, 1)[:context].float()
        for t in range(first, last):
            own = context - last + t + 1
            scores = weights_TJ[t] @ (q_TJe[t] @ k_Ce[:own].T).clamp(min=0)
            best = scores.sort(descending=True, stable=True).indices[:top].sort().values
            found[t, : len(best)] = slots[best].to(torch.int32)
    return found
