"""The plain twins of the ops that choose keys, in pure torch.

Shapes are those of `reference.py`; besides: J heads of the indexer, e the size of its queries and keys, O keys that are
seen at most; G heads of keys, n keys of a run, R runs.
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
            best = _best(q_TJe[t], weights_TJ[t], k_Ce[:own], top)
            found[t, : len(best)] = slots[best].to(torch.int32)
    return found


def choose_entries(
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
    """Which keys new tokens see where each stands for `rate` tokens: int32 [T, top], numbers in their order, -1 behind
    the last. A token may see those that end with it or before; they score as `choose_keys` says. Tables are of pages of
    so many tokens, with B rows in the cache: a key lies in that of the last of its tokens, `B / page` rows a token."""
    found, B = torch.full((len(q_TJe), top), -1, dtype=torch.int32, device=q_TJe.device), k_P1Be.shape[2]
    for s, context in enumerate(contexts_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        ends = (torch.arange(context // rate, device=q_TJe.device) + 1) * rate - 1
        rows = tables_SM[s, ends // page].long() * B + ends % page * B // page
        k_Ce = k_P1Be.flatten(0, 2)[rows].float()
        for t in range(first, last):
            own = (context - last + t + 1) // rate
            best = _best(q_TJe[t], weights_TJ[t], k_Ce[:own], top)
            found[t, : len(best)] = best.to(torch.int32)
    return found


def _best(q_Je: Tensor, weights_J: Tensor, k_Ce: Tensor, top: int) -> Tensor:
    """Numbers of the keys with the largest scores, in their order."""
    scores_C = weights_J @ (q_Je @ k_Ce.T).clamp(min=0)
    return scores_C.sort(descending=True, stable=True).indices[:top].sort().values


def choose_blocks(
    q_TGe: Tensor,
    k_P1Be: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    size: int,
    top: int,
    local: int,
) -> Tensor:
    """The `top` blocks of `size` keys with the largest product of a query with one of theirs up to its own position, of
    equal ones the earlier, in their order; those of the query and the `local` - 1 before are always among them: int32
    [T, G, top], -1 behind the last."""
    found, page = torch.full((*q_TGe.shape[:2], top), -1, dtype=torch.int32, device=q_TGe.device), k_P1Be.shape[2]
    for s, context in enumerate(contexts_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        k_Ce = k_P1Be[tables_SM[s, : -(-context // page)].long(), 0].flatten(0, 1)[:context].float()
        for t in range(first, last):
            own = context - last + t
            scores = torch.nn.functional.pad(q_TGe[t] @ k_Ce[: own + 1].T, (0, -(own + 1) % size), value=float("-inf"))
            best = scores.unflatten(1, (-1, size)).amax(2)
            best[:, max(0, own // size + 1 - local) :] = float("inf")
            order = best.sort(dim=1, descending=True, stable=True).indices[:, :top].sort(dim=1).values
            found[t, :, : order.shape[1]] = order.to(torch.int32)
    return found


def pool_runs(rows_Rnf: Tensor, places_ne: Tensor) -> Tensor:
    """The mean of the keys of a run, weighted number by number by the softmax over them of what stands behind each plus
    `places`: float32 [R, e]. rows: of each key its e numbers and then what they are weighted by, f = 2 e."""
    e = places_ne.shape[1]
    return ((rows_Rnf[..., e:] + places_ne).softmax(1) * rows_Rnf[..., :e]).sum(1)
