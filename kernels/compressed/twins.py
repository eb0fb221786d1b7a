"""The plain twins of the ops of entries that stand for several tokens each, in pure torch. Letters are those of
`entries.py`; C = S e."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = torch.finfo(torch.float32).min  # the largest logarithm of a weight where there is none


def nothing(size: tuple[int, ...] | torch.Size) -> Tensor:
    """A state that nothing has been taken into, [..., 3, e]."""
    state = torch.zeros(size)
    state[..., 0, :] = NOTHING
    return state


def rotate_pairs_(x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor, back: bool = False) -> None:
    """Turns the last 2 r numbers of each head, neighbours (2i, 2i + 1) by neighbours, by their position in place,
    float32 [T, N, d]; back: the other way round."""
    r, at = cos_Pr.shape[1], positions_T.long()
    cos, sin = cos_Pr[at].unsqueeze(1), sin_Pr[at].unsqueeze(1)
    pairs = x_TNd[..., x_TNd.shape[2] - 2 * r :].unflatten(2, (r, 2))
    a, b = pairs[..., 0].clone(), pairs[..., 1].clone()
    sin = -sin if back else sin
    pairs[..., 0] = a * cos - b * sin
    pairs[..., 1] = b * cos + a * sin


def fold_entries_(
    made_TC: Tensor,
    weighed_TC: Tensor,
    places_nC: Tensor,
    norm_e: Tensor,
    eps: float,
    cos_Pr: Tensor,
    sin_Pr: Tensor,
    rows_P1Be: Tensor,
    state_LS3e: Tensor,
    page: int,
    slots_T: Tensor,
    states_S: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
) -> None:
    """Takes new tokens in: writes entries that become whole into the cache, each where its last token lies, behind an
    RMSNorm and turned as the first token of its block, and brings states up to date. page: tokens of one; slots:
    those of tokens; states, starts and contexts as `Places` has them."""
    starts, contexts = starts_S1.tolist(), contexts_S.tolist()
    for s, slot in enumerate(states_S.tolist()):
        first, last = starts[s], starts[s + 1]
        if first == last:
            continue
        start, tokens = contexts[s] - (last - first), slice(first, last)
        state = state_LS3e[slot] if start else nothing(state_LS3e.shape[1:])
        sizes = state.shape[0], state.shape[2]
        made, weighed = made_TC[tokens].unflatten(1, sizes), weighed_TC[tokens].unflatten(1, sizes)
        whole_We, state_LS3e[slot] = _taken(made, weighed, places_nC, state, start)
        number = start // len(places_nC)
        _write(whole_We, number, norm_e, eps, (cos_Pr, sin_Pr), rows_P1Be, page, len(places_nC), slots_T[tokens], start)


def _taken(
    made_tSe: Tensor, weighed_tSe: Tensor, places_nC: Tensor, state_S3e: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    """The entries that tokens from position `start` on make whole, float32 [W, e], and the state behind them."""
    n, tokens = len(places_nC), len(made_tSe)
    lead = start % n
    blocks, whole = -(-(lead + tokens) // n), (lead + tokens) // n
    before, after = lead, blocks * n - lead - tokens

    def in_blocks(x_tSe: Tensor, value: float) -> Tensor:
        """[W, n, S, e]; places without a new token have this value."""
        padded = torch.nn.functional.pad(x_tSe, (0, 0, 0, 0, before, after), value=value)
        return padded.view(blocks, n, *x_tSe.shape[1:])

    made, places_nSe = in_blocks(made_tSe, 0.0), places_nC.view(n, *made_tSe.shape[1:])
    logs = in_blocks(weighed_tSe, float("-inf")) + places_nSe
    ends = [_folded(logs[:, :, 0], made[:, :, 0], _behind(state_S3e[0], blocks, None))]
    if len(state_S3e) == 2:
        ends.append(_folded(logs[:, :, 1], made[:, :, 1], _behind(state_S3e[1], blocks, ends[0])))
    left = torch.stack([end[-1] for end in ends])
    if whole == blocks:  # a new block begins; what the last one gives to the next entry is there already
        left = torch.stack([nothing(left.shape[1:]), ends[0][-1]]) if len(left) == 2 else nothing(left.shape)
    return (ends[-1][:whole, 2] / ends[-1][:whole, 1]).contiguous(), left


def _write(
    rows_We: Tensor,
    first: int,
    norm_e: Tensor,
    eps: float,
    turns: tuple[Tensor, Tensor],
    rows_P1Be: Tensor,
    page: int,
    rate: int,
    slots_t: Tensor,
    start: int,
) -> None:
    """Entries from number `first` on."""
    normed = rows_We * torch.rsqrt(rows_We.square().mean(1, keepdim=True) + eps) * norm_e
    numbers = torch.arange(len(rows_We)) + first
    rotate_pairs_(normed.unsqueeze(1), *turns, numbers * rate)
    slots_W = slots_t[(numbers + 1) * rate - 1 - start]
    rows_P1Be[slots_W // page, 0, slots_W % page // rate] = normed.to(rows_P1Be.dtype)


def _behind(state_3e: Tensor, blocks: int, before_W3e: Tensor | None) -> Tensor:
    """What each block begins with, [W, 3, e]: the first one with the state, others with nothing, or with what the block
    before gives to their entries."""
    others = nothing((blocks - 1, *state_3e.shape)) if before_W3e is None else before_W3e[:-1]
    return torch.cat([state_3e.unsqueeze(0), others])


def _folded(logs_Wne: Tensor, made_Wne: Tensor, state_W3e: Tensor) -> Tensor:
    """The states of blocks with their tokens, one after the other; a weight of 0 changes nothing."""
    most, total, mean = state_W3e.unbind(1)
    for j in range(logs_Wne.shape[1]):
        log, new = logs_Wne[:, j], torch.maximum(most, logs_Wne[:, j])
        old, weight = (most - new).exp(), (log - new).exp()
        most, total, mean = new, total * old + weight, mean * old + weight * made_Wne[:, j]
    return torch.stack([most, total, mean], dim=1)
