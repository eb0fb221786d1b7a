"""What takes the place of grouped-query attention in a layer: latent attention, the gated delta rule, a short
convolution between gates, a state space. `mix` says what is computed, as a sequence of ops; a backend may run it at
once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .blocks import cache_rows
from .blocks.cache_rows import Rows
from .decoder_layer import Block, Places, linear
from .packed import Matrix, Stacked
from .sparse.indexer import Indexer, as_pages, as_sequences
from .sparse.log_positions import ByLogs

if TYPE_CHECKING:
    from . import Ops


TURNING = 8  # tokens whose keys and values take as long to make as turning the projection over does
SEGMENT = 512  # tokens whose keys and values are made at once
MADE_PAGE = 32  # of the cache that these go to

Way = Literal["attend", "make", "choose"]  # to latents, to keys and values made of them, to chosen latents


@dataclass(frozen=True, kw_only=True)
class LatentBlock(Block):
    """Latent attention. A query attends to latents themselves: it goes into their space by its head's part of the
    up-projection of keys, and what is attended comes out of it by that of values. Or keys and values are made of the
    latents of the context, where that takes fewer operations. With a `top` a token sees so many keys of a longer
    context, which its indexer has chosen, or an earlier layer's. Letters besides those of `reference.py`: l the rank of
    a latent, n the part of a head without rotation, v a value."""

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
    rows_P1Bl: Rows  # the cache: of each token its latent and its rotary key, l + 2 r
    cos_Pr: Tensor
    sin_Pr: Tensor
    norm_eps: float  # of the latents' norms
    scale: float  # of scores
    temperature_P: Tensor | None = None  # float32, by position: what queries are multiplied by
    may_make_keys: bool = True  # else latents are attended whatever it costs; no value of a tensor is asked for
    gate: Matrix | None = None  # [N, D]; what a head gives is weighted by the sigmoid of its number
    top: int | None = None  # None: all keys are seen
    indexer: Indexer | None = None
    by_logs: ByLogs | None = None  # of queries

    @property
    def by_ops(self) -> bool:
        return super().by_ops or self.by_logs is not None or self.cos_Pr.shape[1] == 0

    @property
    def rank(self) -> int:
        return len(self.kv_a_norm)

    def makes_keys(self, queries: int, context: int) -> bool:
        """Whether keys and values are made for so many new tokens of a sequence with so many in the cache. A pair of a
        query and a key costs n + v products less than 2 l, and one of a latent and a head l (n + v) for each token of
        the context; that of new tokens is what their queries and outputs cost on the other way."""
        own, value = self.k_up.cols, self.v_up.rows // self.heads
        pairs = queries * context - queries * (queries - 1) // 2
        fewer = pairs * (2 * self.rank - own - value)
        return fewer > (context - queries + TURNING) * self.rank * (own + value)

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        self._keep(ops, h_TD, places)
        if self.indexer is not None:
            self.indexer.keep(ops, h_TD, places)
        if not wanted:
            return None
        low_TR = self._low(ops, h_TD)
        q_TNd = self._queries(ops, low_TR, places)
        if not self.may_make_keys and self.top is None:
            batch = places.tables_SM, places.starts_S1, places.contexts_S
            return self._gated(ops, h_TD, self._attend_latents(ops, q_TNd, self.rows_P1Bl, batch))
        slots_TO = self._chosen(ops, h_TD, low_TR, places)
        starts, contexts = places.starts_S1.tolist(), places.contexts_S.tolist()
        ways = [self._way(starts[s + 1] - starts[s], context) for s, context in enumerate(contexts)]
        out, s = [], 0
        while s < len(ways):  # a sequence with made keys alone, others of a kind together
            end = s + 1
            while ways[s] != "make" and end < len(ways) and ways[end] == ways[s]:
                end += 1
            q_tNd, tables_SM = q_TNd[starts[s] : starts[end]], places.tables_SM[s:end]
            if ways[s] == "make":
                out.append(self._attend_made(ops, q_tNd, tables_SM, contexts[s]))
            elif slots_TO is not None and ways[s] == "choose":
                rows = slice(starts[s], starts[end])
                batch = as_sequences(slots_TO[rows])
                out.append(self._attend_latents(ops, q_tNd, as_pages(self.rows_P1Bl), batch))
            else:
                batch = tables_SM, places.starts_S1[s : end + 1] - starts[s], places.contexts_S[s:end]
                out.append(self._attend_latents(ops, q_tNd, self.rows_P1Bl, batch))
            s = end
        return self._gated(ops, h_TD, torch.cat(out))

    def _gated(self, ops: Ops, h_TD: Tensor, out_TNv: Tensor) -> Tensor:
        """What the heads give, each times its gate: float32 [T, N v]."""
        if self.gate is None:
            return out_TNv.flatten(1)
        if self.gate.rows > self.heads:  # one for each value
            out_TC = out_TNv.flatten(1).contiguous()
            ops.sigmoid_mul_(out_TC, ops.linear(h_TD, self.gate))
            return out_TC
        found, gate_TN = out_TNv.new_zeros(out_TNv.shape), ops.linear(h_TD, self.gate)
        ops.gated_add_(found.flatten(0, 1), out_TNv.flatten(0, 1).contiguous(), gate_TN.view(-1, 1))
        return found.flatten(1)

    def _way(self, queries: int, context: int) -> Way:
        """How so many new tokens of a sequence with so many in the cache attend."""
        if self.top is not None and context > self.top:
            return "choose"
        return "make" if self.may_make_keys and self.makes_keys(queries, context) else "attend"

    def _chosen(self, ops: Ops, h_TD: Tensor, low_TR: Tensor, places: Places) -> Tensor | None:
        """Where the keys lie that new tokens see; None: all see everything. It is kept for layers behind."""
        if self.top is None or int(places.contexts_S.max()) <= self.top:
            return None
        if self.indexer is not None:
            places.chosen["slots"] = self.indexer.choose(ops, h_TD, low_TR, places, self.top)
        return places.chosen["slots"]

    def _attend_latents(self, ops: Ops, q_TNd: Tensor, rows_P1Bl: Rows, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """float32 [T, N, v]; batch: page tables, starts and contexts, in the cache as these pages have it."""
        own = self.k_up.cols
        q_TNl = torch.cat([ops.linear_by_head(q_TNd[..., :own], self.k_up), q_TNd[..., own:]], dim=2)
        seen_TNl = ops.attention(q_TNl, rows_P1Bl, cache_rows.first(rows_P1Bl, self.rank), *batch, self.scale)
        return ops.linear_by_head(seen_TNl, self.v_up)

    def _attend_made(self, ops: Ops, q_TNd: Tensor, tables_1M: Tensor, context: int) -> Tensor:
        """float32 [T, N, v] of one sequence."""
        pages = -(-context // MADE_PAGE)
        rows_Cl = cache_rows.widen(self.rows_P1Bl[tables_1M[0].long()])[:, 0].flatten(0, 1)[:context]
        keys, values = self._make(ops, rows_Cl)
        k_PNBd, v_PNBd = (_paged(x.to(cache_rows.made_dtype(self.rows_P1Bl)), pages) for x in (keys, values))
        small = torch.tensor([*range(pages), 0, len(q_TNd), context], dtype=torch.int32, device=q_TNd.device)
        table, starts, contexts = small.split([pages, 2, 1])
        return ops.attention(q_TNd, k_PNBd, v_PNBd, table.view(1, -1), starts, contexts, self.scale)

    def _make(self, ops: Ops, rows_Cl: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads, float32 [C, N, n + 2 r] and [C, N, v]. The projection of keys lies as queries
        want it, so it is turned over, in the type of the cache that is made."""
        C, N, own, rank = len(rows_Cl), self.heads, self.k_up.cols, self.rank
        turned = ops.dequantize(self.k_up).view(N, rank, own).transpose(1, 2).reshape(N * own, rank)
        up = Matrix.plain(turned.to(cache_rows.made_dtype(self.rows_P1Bl)))
        segments = rows_Cl[:, :rank].split(SEGMENT)
        own_CN, values_CN = (torch.cat([ops.linear(one, to) for one in segments]) for to in (up, self.v_up))
        keys = own_CN.view(C, N, own), rows_Cl[:, None, rank:].expand(-1, N, -1)
        return torch.cat(keys, dim=2), values_CN.view(C, N, -1)

    def _keep(self, ops: Ops, h_TD: Tensor, places: Places) -> None:
        """Writes the latents and rotary keys of new tokens into the cache."""
        row_TL, rank = ops.linear(h_TD, self.kv_a, self.kv_a_bias), self.rank
        row_TL[:, :rank] = ops.rmsnorm(row_TL[:, :rank].contiguous(), self.kv_a_norm, self.norm_eps)
        if self.cos_Pr.shape[1]:
            ops.rotate_(row_TL[:, None, rank:], self.cos_Pr, self.sin_Pr, places.positions_T)
        ops.store_rows_(self.rows_P1Bl, places.slots_T, row_TL.unsqueeze(1))

    def _low(self, ops: Ops, h_TD: Tensor) -> Tensor:
        """What queries are made of, float32: the hidden state, or a latent of it."""
        if self.q_a is None or self.q_a_norm is None:
            return h_TD
        return ops.rmsnorm(ops.linear(h_TD, self.q_a, self.q_a_bias), self.q_a_norm, self.norm_eps)

    def _queries(self, ops: Ops, low_TR: Tensor, places: Places) -> Tensor:
        """float32 [T, N, n + 2 r], the last part rotated, and as warm as their positions ask for."""
        q_TNd = ops.linear(low_TR, self.q).view(len(low_TR), self.heads, -1)
        if self.cos_Pr.shape[1]:
            ops.rotate_(q_TNd[..., self.k_up.cols :], self.cos_Pr, self.sin_Pr, places.positions_T)
        if self.by_logs is not None:
            self.by_logs.scale_(q_TNd, places.positions_T)
        if self.temperature_P is not None:
            ops.scale_rows_(q_TNd, self.temperature_P, places.positions_T)
        return q_TNd


def _paged(x_CNd: Tensor, pages: int) -> Tensor:
    """Keys or values as a cache of so many pages: [pages, N, MADE_PAGE, d]."""
    _, N, d = x_CNd.shape
    padded = torch.nn.functional.pad(x_CNd, (0, 0, 0, 0, 0, pages * MADE_PAGE - len(x_CNd)))
    return padded.view(pages, MADE_PAGE, N, d).transpose(1, 2).contiguous()


Slots = tuple[Tensor, Tensor, Tensor]  # of some sequences: slots of their states, starts, contexts


def by_piece(places: Places, states: tuple[Tensor, ...], recur: Callable[[slice, Slots], Tensor]) -> Tensor:
    """What a recurrent layer gives of all tokens of a pass: `recur`, of these tokens and their sequences, piece by
    piece. `states`, by slot, are what it brings up to date: behind a piece some are kept."""
    assert places.states_S is not None, "a pass without slots of states"
    if not places.pieces:
        return recur(slice(None), (places.states_S, places.starts_S1, places.contexts_S))
    out = []
    for piece in places.pieces:
        out.append(recur(slice(piece.first, piece.last), piece.tensors))
        if piece.keep is not None:
            for one in states:
                one[piece.keep] = one[piece.slot]
    return torch.cat(out)


@dataclass(frozen=True, kw_only=True)
class DeltaBlock(Block):
    """The gated delta rule behind a short convolution. With a `decay` each number of a key has one of its own, and the
    gate is a sigmoid. Letters: C channels (queries, keys, values), W taps, G heads of queries and keys, H of values, k
    and v their sizes; slots of states as `Places.states_S` says."""

    k_heads: int
    k_dim: int
    in_turns: bool  # heads of values go by turns of those of keys, instead of next to each other
    qkv: Stacked  # [C, D]: queries, keys, values
    z: Matrix  # [H v, D or what z_low gives], the gate of what comes out
    ba: Matrix  # [2 H, D]: the strength of a change, then its decay; [H, D]: without
    conv_CW: Tensor  # float32
    rate_H: Tensor  # float32, below 0: of the decay
    dt_bias_H: Tensor  # float32; [H k] with a decay by key
    norm_v: Tensor  # float32
    inputs_LCw: Tensor  # the last inputs of the convolution
    state_LHkv: Tensor
    decay: Matrix | None = None  # [H k, D or what decay_low gives]
    decay_low: Matrix | None = None
    z_low: Matrix | None = None
    least: float | None = None  # of decays by key: the bound of their logarithm
    sigmoid: bool = False  # the gate is one also without a decay by key

    @property
    def by_ops(self) -> bool:
        return super().by_ops or self.sigmoid

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        T, (H, _, v) = len(h_TD), self.state_LHkv.shape[1:]
        rows = linear(ops, h_TD, self.qkv), *self._gates(ops, h_TD)

        def recur(tokens: slice, slots: Slots) -> Tensor:
            qkv_TC, decay_TH, beta_TH = (row[tokens] for row in rows)
            return self._recur(ops, qkv_TC, decay_TH, beta_TH, slots)

        out_THv = by_piece(places, (self.inputs_LCw, self.state_LHkv), recur)
        if not wanted:
            return None
        gate_TC = ops.linear(h_TD if self.z_low is None else ops.linear(h_TD, self.z_low), self.z)
        out_THv = ops.rmsnorm(out_THv, self.norm_v, self.eps)
        if self.decay is not None or self.sigmoid:
            out_TC = out_THv.view(T, H * v)
            ops.sigmoid_mul_(out_TC, gate_TC)
            return out_TC
        return ops.glu(torch.cat([gate_TC.view(T, H, v), out_THv], dim=2).view(T * H, 2 * v)).view(T, H * v)

    def _gates(self, ops: Ops, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Decays, [T, H] or [T, H, k], and strengths of changes, [T, H]."""
        if self.decay is None:
            return ops.delta_gates(ops.linear(h_TD, self.ba), self.rate_H, self.dt_bias_H)
        dt_TR = ops.linear(h_TD if self.decay_low is None else ops.linear(h_TD, self.decay_low), self.decay)
        return ops.key_gates(dt_TR, ops.linear(h_TD, self.ba), self.rate_H, self.dt_bias_H, self.least)

    def _recur(self, ops: Ops, qkv_TC: Tensor, decay_TH: Tensor, beta_TH: Tensor, slots: Slots) -> Tensor:
        """The convolution and the rule over tokens of some sequences: float32 [T, H, v]."""
        T, rows, (H, _, v) = len(qkv_TC), self.k_heads * self.k_dim, self.state_LHkv.shape[1:]
        q, k, values = ops.short_conv(qkv_TC, self.conv_CW, self.inputs_LCw, *slots).split([rows, rows, H * v], dim=1)
        queries, keys = (x.reshape(T, self.k_heads, self.k_dim) for x in (q, k))
        if self.in_turns:
            queries, keys = (x.repeat(1, H // self.k_heads, 1) for x in (queries, keys))
        return ops.delta_rule(queries, keys, values.reshape(T, H, v), decay_TH, beta_TH, self.state_LHkv, *slots)


@dataclass(frozen=True, kw_only=True)
class ConvBlock(Block):
    """A short convolution between two gates, which are projections as its input is: C channels, W taps."""

    rows: Matrix  # [3 C, D]: what the input is multiplied by, then the output, then the input
    rows_bias: Tensor | None
    conv_CW: Tensor  # float32
    conv_bias_C: Tensor | None
    inputs_LCw: Tensor  # the last inputs of the convolution, by slot

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        opens_TC, closes_TC, x_TC = ops.linear(h_TD, self.rows, self.rows_bias).split(len(self.conv_CW), dim=1)
        ops.mul_(x_TC, opens_TC)

        def recur(tokens: slice, slots: Slots) -> Tensor:
            return ops.short_conv(x_TC[tokens], self.conv_CW, self.inputs_LCw, *slots, self.conv_bias_C, silu=False)

        y_TC = by_piece(places, (self.inputs_LCw,), recur)
        if not wanted:
            return None
        ops.mul_(y_TC, closes_TC)
        return y_TC


@dataclass(frozen=True, kw_only=True)
class SpaceBlock(Block):
    """The state space of Mamba 2 behind a short convolution. Letters: C channels (values, then what they are put in
    by, then what is read by), W taps, G heads of the latter two, H of values, k and v the sizes of a state."""

    groups: int
    dt_range: tuple[float, float]  # of a step
    rows: Matrix  # [H v + C + H, D]: the gate of what comes out, channels, steps
    rows_bias: Tensor | None
    conv_CW: Tensor  # float32
    conv_bias_C: Tensor | None
    rate_H: Tensor  # float32, below 0: of the decay
    dt_bias_H: Tensor  # float32
    skip_H: Tensor  # float32: of values, what comes out without a state
    norm_V: Tensor  # float32 [H v]
    inputs_LCw: Tensor  # the last inputs of the convolution, by slot
    state_LHkv: Tensor

    def mix(self, ops: Ops, h_TD: Tensor, places: Places, wanted: bool) -> Tensor | None:
        (H, k, v), G, C = self.state_LHkv.shape[1:], self.groups, len(self.conv_CW)
        z_TV, channels_TC, dt_TH = ops.linear(h_TD, self.rows, self.rows_bias).split([H * v, C, H], dim=1)

        def recur(tokens: slice, slots: Slots) -> Tensor:
            mixed_TC = ops.short_conv(channels_TC[tokens], self.conv_CW, self.inputs_LCw, *slots, self.conv_bias_C)
            x_TV, b_TK, c_TK = mixed_TC.split([H * v, G * k, G * k], dim=1)
            heads = x_TV.unflatten(1, (H, v)), b_TK.unflatten(1, (G, k)), c_TK.unflatten(1, (G, k))
            of_heads = self.rate_H, self.dt_bias_H, self.skip_H
            return ops.state_space(*heads, dt_TH[tokens], *of_heads, self.dt_range, self.state_LHkv, *slots)

        y_TV = by_piece(places, (self.inputs_LCw, self.state_LHkv), recur).flatten(1)
        return ops.gated_norm(y_TV, z_TV, self.norm_V, self.eps, self.groups) if wanted else None
