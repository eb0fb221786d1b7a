"""Rows of a table for the runs of tokens that end with a token, gated by each residual stream, behind a convolution.

Letters besides those of `../residual/streams.py`: H heads of runs, W numbers of all their rows, C = m D, w past inputs
of the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..decoder_layer import TOKENS, Places
from ..mixers import Slots, by_piece
from ..packed import Matrix
from ..residual.gated import by_stream

if TYPE_CHECKING:
    from .. import Ops


class Table(Protocol):
    """Rows that lie in RAM or in a file."""

    def rows(self, numbers_N: Tensor) -> Tensor:
        """float32 [N, W / H] of these rows, int64."""


@dataclass(frozen=True, kw_only=True)
class Grams:
    """Weights, constants and state. multipliers: of a run's tokens, the newest first; primes: rows of each head, those
    of shorter runs first; end: the token behind which runs begin anew."""

    table: Table
    key: Matrix  # [C, W]
    value: Matrix  # [D, W]
    key_norm_C: Tensor  # float32
    query_norm_C: Tensor
    conv_norm_C: Tensor
    conv_Ct: Tensor  # float32, of every `size`-th token
    eps: float
    multipliers: tuple[int, ...]
    primes: tuple[int, ...]
    end: int
    inputs_LCw: Tensor  # by slot: the last inputs of the convolution
    tokens_Ln: Tensor  # by slot, float32: the last tokens, which are whole numbers below 2^24

    @property
    def size(self) -> int:
        """Tokens of the longest run."""
        return len(self.multipliers)

    def made(self, ops: Ops, x_TmD: Tensor, places: Places) -> Tensor:
        """What is added to each stream: float32 [T, m, D]."""
        tokens_T = places.chosen[TOKENS]

        def numbers(tokens: slice, slots: Slots) -> Tensor:
            return self._numbers(tokens_T[tokens], slots)

        rows_TW = self.table.rows(by_piece(places, (self.tokens_Ln,), numbers).flatten()).view(len(x_TmD), -1)
        key_TmD = by_stream(ops, ops.linear(rows_TW, self.key).view_as(x_TmD), self.key_norm_C, self.eps)
        query_TmD = by_stream(ops, x_TmD, self.query_norm_C, self.eps)
        ones = Matrix.plain(x_TmD.new_ones(1, x_TmD.shape[2]))
        fits_Tm = ops.linear((key_TmD * query_TmD).view(-1, x_TmD.shape[2]), ones).view(len(x_TmD), -1)
        fits_Tm = fits_Tm / x_TmD.shape[2] ** 0.5
        gates_Tm = torch.ones_like(fits_Tm)
        ops.sigmoid_mul_(gates_Tm, fits_Tm.abs().clamp(min=1e-6).sqrt() * fits_Tm.sign())
        gated_TmD = gates_Tm.unsqueeze(2) * ops.linear(rows_TW, self.value).unsqueeze(1)
        normed_TC = by_stream(ops, gated_TmD, self.conv_norm_C, self.eps)

        def convolve(tokens: slice, slots: Slots) -> Tensor:
            return self._convolve(normed_TC[tokens], slots)

        convolved_TC = by_piece(places, (self.inputs_LCw,), convolve)
        ops.sigmoid_mul_(convolved_TC, convolved_TC.clone())
        return torch.add(gated_TmD, convolved_TC.view_as(x_TmD))

    def _numbers(self, tokens_T: Tensor, slots: Slots) -> Tensor:
        """The table's rows of each token's runs, int64 [T, H]. What a sequence has before its first token, and what
        stands before an `end`, counts as `end`."""
        slots_S, starts_S1, contexts_S = slots
        past, found = self.size - 1, tokens_T.new_empty(len(tokens_T), len(self.primes))
        for s, slot in enumerate(slots_S.tolist()):
            first, last = int(starts_S1[s]), int(starts_S1[s + 1])
            if first == last:
                continue
            goes_on = int(contexts_S[s]) > last - first
            before = self.tokens_Ln[slot].long() if goes_on else tokens_T.new_full((past,), self.end)
            line = torch.cat([before, tokens_T[first:last]])
            found[first:last] = self._hashed(line)
            self.tokens_Ln[slot] = line[len(line) - past :].float()
        return found

    def _hashed(self, line: Tensor) -> Tensor:
        """int64 [T, H] of the tokens behind the first `size` - 1 of a line."""
        past, heads = self.size - 1, len(self.primes) // (self.size - 1)
        mixed, is_over = line[past:] * self.multipliers[0], torch.zeros(len(line) - past, dtype=torch.bool)
        found, offset = [], 0
        for back in range(1, self.size):
            older = line[past - back : len(line) - back]
            mixed = mixed ^ older.masked_fill(is_over, self.end) * self.multipliers[back]
            is_over = is_over | (older == self.end)
            for prime in self.primes[(back - 1) * heads : back * heads]:
                found.append(mixed.remainder(prime) + offset)
                offset += prime
        return torch.stack(found, dim=1)

    def _convolve(self, x_TC: Tensor, slots: Slots) -> Tensor:
        """A causal convolution of each channel over every `size`-th token, float32 [T, C]: a sum of products whose
        order is the same however many tokens there are."""
        slots_S, starts_S1, contexts_S = slots
        out, past = torch.empty_like(x_TC), self.inputs_LCw.shape[2]
        for s, slot in enumerate(slots_S.tolist()):
            first, last = int(starts_S1[s]), int(starts_S1[s + 1])
            if first == last:
                continue
            goes_on = int(contexts_S[s]) > last - first
            before = self.inputs_LCw[slot] if goes_on else torch.zeros_like(self.inputs_LCw[slot])
            line_TC = torch.cat([before.T, x_TC[first:last]])
            taps = (line_TC[i * self.size : i * self.size + last - first] for i in range(self.conv_Ct.shape[1]))
            out[first:last] = sum(row_TC * self.conv_Ct[:, i] for i, row_TC in enumerate(taps))
            self.inputs_LCw[slot] = line_TC[len(line_TC) - past :].T
        return out
