"""What takes the place of grouped-query attention in a layer: latent attention, and the gated delta rule. `mix` says
what is computed, as a sequence of ops; a backend may run it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .decoder_layer import Block, Piece, Places, linear
from .packed import Matrix, Stacked

if TYPE_CHECKING:
    from . import Ops


@dataclass(frozen=True, kw_only=True)
class LatentBlock(Block):
    """Latent attention, all of it on latents: a query goes into the space of latents by its head's part of the
    up-projection of keys, and what is attended comes out of it by that of values. Letters besides those of
    `reference.py`: l the rank of a latent, n the part of a head without rotation, v a value."""

    heads: int
    q_a: Matrix | None  # [rank, D]; None: queries come straight from the hidden state
    q_a_norm: Tensor | None
    q_a_bias: Tensor | None
    q: Matrix  # [N (n + 2 r), D or rank]
    kv_a: Matrix  # [l + 2 r, D]
    kv_a_bias: Tensor | None
    kv_a_norm: Tensor  # float32 [l]
    k_up: Matrix  # [N l, n]
    v_up: Matrix  # [N v, l]
    rows_P1Bl: Tensor  # the cache: of each token its latent and its rotary key, l + 2 r
    cos_Pr: Tensor
    sin_Pr: Tensor
    norm_eps: float  # of the latents' norms
    scale: float  # of scores

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        rank = len(self.kv_a_norm)
        self._keep(ops, h_TD, places, rank)
        if not wanted:
            return None
        q_TNd = self._queries(ops, h_TD, places)
        own = self.k_up.cols
        q_TNl = torch.cat([ops.linear_by_head(q_TNd[..., :own], self.k_up), q_TNd[..., own:]], dim=2)
        values = self.rows_P1Bl[..., :rank]
        batch = places.tables_SM, places.starts_S1, places.contexts_S
        return ops.linear_by_head(ops.attention(q_TNl, self.rows_P1Bl, values, *batch, self.scale), self.v_up).flatten(
            1
        )

    def _keep(self, ops: Ops, h_TD: Tensor, places: Places, rank: int) -> None:
        """Writes the latents and rotary keys of new tokens into the cache."""
        row_TL = ops.linear(h_TD, self.kv_a, self.kv_a_bias)
        row_TL[:, :rank] = ops.rmsnorm(row_TL[:, :rank].contiguous(), self.kv_a_norm, self.norm_eps)
        ops.rotate_(row_TL[:, None, rank:], self.cos_Pr, self.sin_Pr, places.positions_T)
        page = self.rows_P1Bl.shape[2]
        self.rows_P1Bl[places.slots_T // page, 0, places.slots_T % page] = row_TL.to(self.rows_P1Bl.dtype)

    def _queries(self, ops: Ops, h_TD: Tensor, places: Places) -> Tensor:
        """float32 [T, N, n + 2 r], the last part rotated."""
        if self.q_a is not None and self.q_a_norm is not None:
            h_TD = ops.rmsnorm(ops.linear(h_TD, self.q_a, self.q_a_bias), self.q_a_norm, self.norm_eps)
        q_TNd = ops.linear(h_TD, self.q).view(len(h_TD), self.heads, -1)
        ops.rotate_(q_TNd[..., self.k_up.cols :], self.cos_Pr, self.sin_Pr, places.positions_T)
        return q_TNd


@dataclass(frozen=True, kw_only=True)
class DeltaBlock(Block):
    """The gated delta rule behind a short convolution. Letters: C channels (queries, keys, values), W taps, G heads of
    queries and keys, H of values, k and v their sizes; slots of states as `Places.states_S` says."""

    k_heads: int
    k_dim: int
    in_turns: bool  # heads of values go by turns of those of keys, instead of next to each other
    qkv: Stacked  # [C, D]: queries, keys, values
    z: Matrix  # [H v, D], the gate of what comes out
    ba: Matrix  # [2 H, D]: the strength of a change, then its decay
    conv_CW: Tensor  # float32
    rate_H: Tensor  # float32, below 0: of the decay
    dt_bias_H: Tensor  # float32
    norm_v: Tensor  # float32
    inputs_LCw: Tensor  # the last inputs of the convolution
    state_LHkv: Tensor

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        assert places.states_S is not None, "a pass without slots of states"
        T, (H, _, v) = len(h_TD), self.state_LHkv.shape[1:]
        rows = linear(ops, h_TD, self.qkv), *ops.delta_gates(ops.linear(h_TD, self.ba), self.rate_H, self.dt_bias_H)
        if places.pieces:
            out_THv = torch.cat([self._piece(ops, piece, rows) for piece in places.pieces])
        else:
            slots = places.states_S, places.starts_S1, places.contexts_S
            out_THv = self._recur(ops, *rows, slots)
        if not wanted:
            return None
        gate_and_out = ops.linear(h_TD, self.z).view(T, H, v), ops.rmsnorm(out_THv, self.norm_v, self.eps)
        return ops.glu(torch.cat(gate_and_out, dim=2).view(T * H, 2 * v)).view(T, H * v)

    def _piece(self, ops: Ops, piece: Piece, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        qkv_TC, decay_TH, beta_TH = (row[piece.first : piece.last] for row in rows)
        slots = piece.states_S, piece.starts_S1, piece.contexts_S
        out_THv = self._recur(ops, qkv_TC, decay_TH, beta_TH, slots)
        if piece.keep is not None:
            for states in (self.inputs_LCw, self.state_LHkv):
                states[piece.keep] = states[piece.slot]
        return out_THv

    def _recur(
        self, ops: Ops, qkv_TC: Tensor, decay_TH: Tensor, beta_TH: Tensor, slots: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The convolution and the rule over tokens of some sequences: float32 [T, H, v]."""
        T, rows, (H, _, v) = len(qkv_TC), self.k_heads * self.k_dim, self.state_LHkv.shape[1:]
        q, k, values = ops.short_conv(qkv_TC, self.conv_CW, self.inputs_LCw, *slots).split([rows, rows, H * v], dim=1)
        queries, keys = (x.reshape(T, self.k_heads, self.k_dim) for x in (q, k))
        if self.in_turns:
            queries, keys = (x.repeat(1, H // self.k_heads, 1) for x in (queries, keys))
        return ops.delta_rule(queries, keys, values.reshape(T, H, v), decay_TH, beta_TH, self.state_LHkv, *slots)
