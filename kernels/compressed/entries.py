"""Entries that stand for several tokens each: how they are made, where they lie, what is kept of one that is not whole.

Every `rate` tokens are a block. An entry is the mean of what its block's tokens give, weighted number by number: the
weights are a softmax over the tokens. With two series of numbers the tokens of the block before come in too, with
their first series, those of the block itself with their second. What has been seen of a block so far is three numbers
for each that it will have, whatever the rate: the largest logarithm of a weight, the sum of weights and the weighted
sum, both divided by the largest weight. Tokens are taken in one by one, so that an entry is the same however a
sequence is cut into passes.

Letters besides those of `reference.py`: S series, e numbers of an entry, n its rate, W blocks of a run of tokens, E
entries, B' entries that a page has room for.
Source: DeepSeek-V4 (sections 2.3.1 and 2.3.2); the running softmax is that of Milakov and Gimelshein (arXiv
1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..decoder_layer import Places
from ..packed import Matrix
from .pairs import turn_pairs_

if TYPE_CHECKING:
    from .. import Ops

NOTHING = torch.finfo(torch.float32).min  # the largest logarithm of a weight where there is none


class Run(NamedTuple):
    """New tokens [first, last) of one sequence, the first at position `start`; the slot of its state, and one that gets
    a copy behind them."""

    first: int
    last: int
    start: int
    slot: int
    keep: int | None


def runs(places: Places) -> Iterator[Run]:
    """Of every sequence of a pass, or of every piece of one where states are kept on the way."""
    assert places.states_S is not None, "a pass without slots of states"
    if places.pieces:
        for piece in places.pieces:
            start = int(piece.contexts_S[0]) - (piece.last - piece.first)
            yield Run(piece.first, piece.last, start, piece.slot, piece.keep)
        return
    starts, contexts = places.starts_S1.tolist(), places.contexts_S.tolist()
    for s, slot in enumerate(places.states_S.tolist()):
        yield Run(starts[s], starts[s + 1], contexts[s] - (starts[s + 1] - starts[s]), slot, None)


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Weights and cache. made, weighed: [S e, D]; places: what is added to the logarithms of weights by place in a
    block, float32 [n, S e]. state: float32, by slot. page: tokens of a page of the cache."""

    made: Matrix
    weighed: Matrix
    places_nC: Tensor
    norm_e: Tensor  # float32
    eps: float
    cos_Pr: Tensor
    sin_Pr: Tensor
    rows_P1Be: Tensor  # [P, 1, B', e]
    state_LS3e: Tensor
    page: int

    @property
    def rate(self) -> int:
        """Tokens of a block."""
        return len(self.places_nC)

    def keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Takes new tokens in: writes the entries that become whole into the cache."""
        sizes = self.state_LS3e.shape[1], self.state_LS3e.shape[3]
        made_TSe, weighed_TSe = (ops.linear(h_TD, one).unflatten(1, sizes) for one in (self.made, self.weighed))
        for run in runs(places):
            if run.first < run.last:
                tokens = slice(run.first, run.last)
                self._take(ops, made_TSe[tokens], weighed_TSe[tokens], run, places.slots_T[tokens])
            if run.keep is not None:
                self.state_LS3e[run.keep] = self.state_LS3e[run.slot]

    def _take(self, ops: Ops, made_tSe: Tensor, weighed_tSe: Tensor, run: Run, slots_t: Tensor) -> None:
        """Takes in the tokens of one run."""
        n, tokens = self.rate, len(made_tSe)
        lead = run.start % n
        blocks, whole = -(-(lead + tokens) // n), (lead + tokens) // n
        before, after = lead, blocks * n - lead - tokens

        def in_blocks(x_tSe: Tensor, value: float) -> Tensor:
            """[W, n, S, e]; places without a new token have this value."""
            padded = torch.nn.functional.pad(x_tSe, (0, 0, 0, 0, before, after), value=value)
            return padded.view(blocks, n, *x_tSe.shape[1:])

        made, places_nSe = in_blocks(made_tSe, 0.0), self.places_nC.view(n, *made_tSe.shape[1:])
        logs = in_blocks(weighed_tSe, float("-inf")) + places_nSe
        state_S3e = self.state_LS3e[run.slot] if run.start else nothing(self.state_LS3e.shape[1:])
        ends = [_folded(logs[:, :, 0], made[:, :, 0], _behind(state_S3e[0], blocks, None))]
        if len(state_S3e) == 2:
            ends.append(_folded(logs[:, :, 1], made[:, :, 1], _behind(state_S3e[1], blocks, ends[0])))
        if whole:
            self._write(ops, ends[-1][:whole], run.start // n, slots_t[n - 1 - lead :: n])
        left = torch.stack([end[-1] for end in ends])
        if whole == blocks:  # a new block begins; what the last one gives to the next entry is there already
            left = torch.stack([nothing(left.shape[1:]), ends[0][-1]]) if len(left) == 2 else nothing(left.shape)
        self.state_LS3e[run.slot] = left

    def _write(self, ops: Ops, ends_W3e: Tensor, first: int, slots_W: Tensor) -> None:
        """Entries from number `first` on, each where its last token lies: turned as the first token of its block."""
        rows_We = ops.rmsnorm((ends_W3e[:, 2] / ends_W3e[:, 1]).contiguous(), self.norm_e, self.eps)
        at = (torch.arange(len(rows_We)) + first) * self.rate
        turn_pairs_(rows_We.unsqueeze(1), self.cos_Pr, self.sin_Pr, at)
        place = slots_W % self.page // self.rate
        self.rows_P1Be[slots_W // self.page, 0, place] = rows_We.to(self.rows_P1Be.dtype)

    def of(self, numbers: Tensor, table_M: Tensor) -> Tensor:
        """These entries of a sequence with these pages, as the cache has them: [E, e]; numbers: int64 [E]."""
        lasts = (numbers + 1) * self.rate - 1
        return self.rows_P1Be[table_M[lasts // self.page].long(), 0, lasts % self.page // self.rate]


def nothing(size: tuple[int, ...] | torch.Size) -> Tensor:
    """A state that nothing has been taken into, [..., 3, e]."""
    state = torch.zeros(size)
    state[..., 0, :] = NOTHING
    return state


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
