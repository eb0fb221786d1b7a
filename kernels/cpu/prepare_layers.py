"""What the C++ kernels are told of a model's layers and of a pass: mixers of each kind, blocks, all layers, places.

As in `prepare.py`: addresses and sizes under their names, checked once and kept in `native`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _cpu
from ..blocks.cache_rows import first
from ..decoder_layer import AttentionBlock, Block, FeedBlock, Layer, Piece, Places, Router, Stack
from ..mixers import ConvBlock, DeltaBlock, LatentBlock, SpaceBlock
from ..packed import Tail
from ..passes.tally import Tally
from ..recipes import SWIGLU
from ..sparse.indexer import Indexer
from .prepare import (
    F32,
    I32,
    I64,
    NAME,
    activation,
    at,
    bank,
    bias,
    cache,
    cache_to_write,
    chunk,
    limit,
    matrix,
    norm,
    rope,
    sinks,
    stacked,
    window,
)  # fmt: skip


def router(to: Router, D: int) -> Any:
    assert to.matrix.cols == D, f"{D} values, a router of {to.matrix.cols} columns"
    E, each = to.matrix.rows, to.matrix.rows // to.groups
    assert each * to.groups == E, f"{E} experts in {to.groups} groups"
    assert 0 < to.top_groups <= to.groups, f"{to.top_groups} of {to.groups} groups"
    assert 0 < to.top_k <= each * to.top_groups, f"{to.top_k} of {each * to.top_groups} experts"
    assert each > 1 or to.top_groups == to.groups or to.group_score == "max", "two best of groups of one expert"
    return _cpu.Router(
        matrix=matrix(to.matrix),
        top_k=to.top_k,
        scoring=_cpu.SCORINGS[to.scoring],
        renormalise=to.renormalise,
        bias=bias(to.bias_E, to.matrix),
        choice_bias=bias(to.choice_bias_E, to.matrix),
        groups=to.groups,
        top_groups=to.top_groups,
        top2=to.group_score == "top2",
        scale=to.scale,
        factors=0 if to.factors_E is None else at(to.factors_E, F32, E),
        jitter=to.jitter,
    )


def block(it: Block) -> Any:
    return it.native.get(NAME) or _block(it)


def _block(it: Block) -> Any:
    D = len(it.pre_norm)
    assert it.o is None or it.o.rows == D, "o gives another number of values"
    it.native[NAME] = _cpu.Block(
        hidden=D,
        pre_norm=at(it.pre_norm, F32, D),
        post_norm=_row(it.post_norm, D),
        pre_bias=_row(it.pre_bias, D),
        post_bias=_row(it.post_bias, D),
        eps=it.eps,
        residual_scale=it.residual_scale,
        mixer=_mixer(it, D),
        o=None if it.o is None else matrix(it.o),
        o_bias=_row(it.o_bias, D),
        out_norm=_row(it.out_norm, D),
        router_norm=_row(it.router_norm, D),
        router=None if it.router is None else router(it.router, D),
    )
    return it.native[NAME]


def _mixer(it: Block, D: int) -> Any:
    """The struct of the block's kind."""
    if isinstance(it, FeedBlock):
        return _cpu.NoMixer()
    assert it.o is not None, "a mixer that projects nothing back"
    if isinstance(it, AttentionBlock):
        return _attention(it, D, it.o.cols)
    if isinstance(it, LatentBlock):
        return _latent(it, D, it.o.cols)
    if isinstance(it, ConvBlock):
        return _conv(it, D, it.o.cols)
    if isinstance(it, SpaceBlock):
        return _space(it, D, it.o.cols)
    assert isinstance(it, DeltaBlock), f"a fused {type(it).__name__}"
    return _delta(it, D, it.o.cols)


def _attention(it: AttentionBlock, D: int, given: int) -> Any:
    (_, G, _, d), v, N = it.k_PGBd.shape, it.v_PGBd.shape[3], it.heads
    rows = (N + G) * d + (0 if it.shared else G * v)
    assert (it.qkv.rows, it.qkv.cols, given) == (rows, D, N * v), "qkv and o do not fit"
    assert it.gate is None or (it.gate.rows in (N, N * v) and it.gate.cols == D), "a gate of another shape"
    assert not it.shared or v == d, f"keys of {d} that serve as values of {v}"
    assert it.first is None or not it.shared, "keys that are turned before they serve as values"
    return _cpu.AttentionMixer(
        heads=N,
        qkv=stacked(it.qkv),
        qkv_bias=bias(it.qkv_bias, it.qkv),
        q_norm=norm(it.q_norm, d, N),
        k_norm=norm(it.k_norm, d, G),
        v_norm=norm(it.v_norm, v, 1),
        v_scale=it.v_scale,
        shared=it.shared,
        cache=cache_to_write(it.k_PGBd, it.v_PGBd),
        rope=rope(it.cos_Pr, it.sin_Pr, d),
        clip=limit(it.clip),
        scale=it.scale,
        window=window(it.window),
        chunk=chunk(it.chunk),
        kind=it.kind,
        sinks=sinks(it.sinks_N, N),
        gate=None if it.gate is None else matrix(it.gate),
        soft=it.soft,
        first=None if it.first is None else rope(*it.first, d),
        temperature=_by_position(it.temperature_P, it.cos_Pr),
    )


def _latent(it: LatentBlock, D: int, given: int) -> Any:
    N, rank, own, turned = it.heads, len(it.kv_a_norm), it.k_up.cols, 2 * it.cos_Pr.shape[1]
    low = D if it.q_a is None else it.q_a.rows
    assert it.gate is None or (it.gate.rows, it.gate.cols) == (N, D), "gates of another shape"
    assert it.q_a is None or it.q_a.cols == D, "a projection of queries of other columns"
    assert (it.q.rows, it.q.cols) == (N * (own + turned), low), "queries do not fit"
    assert (it.kv_a.rows, it.kv_a.cols) == (rank + turned, D), "latents do not fit"
    assert it.rows_P1Bl.shape[3] == rank + turned, f"latents of {rank} + {turned} in {list(it.rows_P1Bl.shape)}"
    assert (it.k_up.rows, it.v_up.cols, it.v_up.rows) == (N * rank, rank, given), "up-projections do not fit"
    return _cpu.LatentMixer(
        heads=N,
        q_a=None if it.q_a is None else matrix(it.q_a),
        q_a_norm=_row(it.q_a_norm, low),
        q_a_bias=_row(it.q_a_bias, low),
        q=matrix(it.q),
        kv_a=matrix(it.kv_a),
        kv_a_bias=bias(it.kv_a_bias, it.kv_a),
        kv_a_norm=at(it.kv_a_norm, F32, rank),
        k_up=matrix(it.k_up),
        v_up=matrix(it.v_up),
        cache=cache(it.rows_P1Bl, first(it.rows_P1Bl, rank)),
        rope=rope(it.cos_Pr, it.sin_Pr, turned),
        norm_eps=it.norm_eps,
        scale=it.scale,
        temperature=_by_position(it.temperature_P, it.cos_Pr),
        may_make_keys=it.may_make_keys,
        gate=None if it.gate is None else matrix(it.gate),
        top=it.top or 0,
        indexer=None if it.indexer is None else _indexer(it.indexer, low, D),
    )


def _indexer(it: Indexer, low: int, D: int) -> Any:
    J, e = it.heads, it.keys_P1Be.shape[3]
    assert (it.q.rows, it.q.cols) == (J * e, low), "queries of the indexer do not fit"
    assert (it.k.rows, it.k.cols, it.weights.rows, it.weights.cols) == (e, D, J, D), "keys of the indexer do not fit"
    return _cpu.Indexer(
        heads=J,
        q=matrix(it.q),
        k=matrix(it.k),
        weights=matrix(it.weights),
        norm=at(it.norm_e, F32, e),
        bias=at(it.bias_e, F32, e),
        eps=it.eps,
        cache=cache(it.keys_P1Be, it.keys_P1Be),
    )


def _delta(it: DeltaBlock, D: int, given: int) -> Any:
    slots, H, k, v = it.state_LHkv.shape
    C, taps = it.conv_CW.shape
    assert k == it.k_dim, f"keys of {it.k_dim}, a state of {k}"
    assert H % it.k_heads == 0, f"{H} heads on {it.k_heads}"
    assert taps > 1, f"{taps} taps"
    assert (it.qkv.rows, it.qkv.cols) == (C, D) == (2 * it.k_heads * k + H * v, D), "channels do not fit"
    decay, decay_low, z_low = it.decay, it.decay_low, it.z_low
    strengths = 2 * H if decay is None else H
    assert (it.z.rows, it.ba.rows, given) == (H * v, strengths, H * v), "gates and o do not fit"
    assert (it.z.cols, it.ba.cols) == (z_low.rows if z_low else D, D), "gates of other columns"
    assert decay is None or (decay.rows, decay.cols) == (H * k, decay_low.rows if decay_low else D), "other decays"
    assert all(low is None or low.cols == D for low in (decay_low, z_low)), "low ranks of other columns"
    return _cpu.DeltaMixer(
        k_heads=it.k_heads,
        k_dim=k,
        v_heads=H,
        v_dim=v,
        in_turns=it.in_turns,
        qkv=stacked(it.qkv),
        z=matrix(it.z),
        ba=matrix(it.ba),
        conv=at(it.conv_CW, F32, C, taps),
        taps=taps,
        rate=at(it.rate_H, F32, H),
        dt_bias=at(it.dt_bias_H, F32, H if decay is None else H * k),
        norm=at(it.norm_v, F32, v),
        inputs=at(it.inputs_LCw, F32, slots, C, taps - 1),
        state=at(it.state_LHkv, F32, slots, H, k, v),
        decay=None if decay is None else matrix(decay),
        decay_low=None if decay_low is None else matrix(decay_low),
        z_low=None if z_low is None else matrix(z_low),
        least=it.least or 0.0,
    )


def _by_position(values: Tensor | None, cos_Pr: Tensor) -> int:
    """A number for each position that there are turns of."""
    return 0 if values is None else at(values, F32, len(cos_Pr))


def _conv(it: ConvBlock, D: int, given: int) -> Any:
    (C, taps), slots = it.conv_CW.shape, len(it.inputs_LCw)
    assert taps > 1, f"{taps} taps"
    assert (it.rows.rows, it.rows.cols, given) == (3 * C, D, C), "channels and o do not fit"
    return _cpu.ConvMixer(
        rows=matrix(it.rows),
        rows_bias=bias(it.rows_bias, it.rows),
        conv=at(it.conv_CW, F32, C, taps),
        conv_bias=_row(it.conv_bias_C, C),
        channels=C,
        taps=taps,
        inputs=at(it.inputs_LCw, F32, slots, C, taps - 1),
    )


def _space(it: SpaceBlock, D: int, given: int) -> Any:
    slots, H, k, v = it.state_LHkv.shape
    C, taps = it.conv_CW.shape
    assert H % it.groups == 0, f"{H} heads on {it.groups}"
    assert taps > 1, f"{taps} taps"
    assert H * v + 2 * it.groups * k == C, "channels do not fit"
    assert (it.rows.rows, it.rows.cols, given) == (H * v + C + H, D, H * v), "channels and o do not fit"
    return _cpu.SpaceMixer(
        groups=it.groups,
        heads=H,
        keys=k,
        values=v,
        least=it.dt_range[0],
        most=it.dt_range[1],
        rows=matrix(it.rows),
        rows_bias=bias(it.rows_bias, it.rows),
        conv=at(it.conv_CW, F32, C, taps),
        conv_bias=_row(it.conv_bias_C, C),
        taps=taps,
        rate=at(it.rate_H, F32, H),
        dt_bias=at(it.dt_bias_H, F32, H),
        skip=at(it.skip_H, F32, H),
        norm=at(it.norm_V, F32, H * v),
        inputs=at(it.inputs_LCw, F32, slots, C, taps - 1),
        state=at(it.state_LHkv, F32, slots, H, k, v),
    )


def _row(values: Tensor | None, size: int) -> int:
    return 0 if values is None else at(values, F32, size)


def places(it: Places) -> Any:
    return it.native.get(NAME) or _places(it)


def _places(it: Places) -> Any:
    (T,), (S, M) = it.positions_T.shape, it.tables_SM.shape
    it.native[NAME] = _cpu.Places(
        tokens=T,
        positions=at(it.positions_T, I32, T),
        slots=at(it.slots_T, I64, T),
        tables=at(it.tables_SM, I32, S, M),
        starts=at(it.starts_S1, I32, S + 1),
        contexts=at(it.contexts_S, I32, S),
        sequences=S,
        table_len=M,
        states=0 if it.states_S is None else at(it.states_S, I32, S),
        pieces=[_piece(piece) for piece in it.pieces],
        windows=[(at(one.slots_T, I64, T), at(one.tables_SM, I32, S, M)) for one in it.windows],
    )
    return it.native[NAME]


def _piece(it: Piece) -> Any:
    return _cpu.Piece(
        first=it.first,
        last=it.last,
        slot=it.slot,
        keep=-1 if it.keep is None else it.keep,
        states=at(it.states_S, I32, 1),
        starts=at(it.starts_S1, I32, 2),
        contexts=at(it.contexts_S, I32, 1),
    )


def stack(it: Stack) -> Any:
    return it.native.get(NAME) or _stack(it)


def _stack(it: Stack) -> Any:
    it.native[NAME] = _cpu.Stack(layers=[_layer(layer) for layer in it.layers])
    return it.native[NAME]


NO_TALLY = {"counts": 0, "experts": 0, "decoding": 0, "ids": 0, "weights": 0}


def tally(it: Tally | None, to: Stack, T: int) -> dict[str, int]:
    """Where choices of T tokens go, by the names of `layers`."""
    if it is None:
        return NO_TALLY
    E, L = it.counts_2LE.shape[2], len(to.layers)
    experts, K = to.native.get("most") or _most(to)
    assert experts <= E, f"counts of {E} experts, a layer of {experts}"
    return {
        "counts": at(it.counts_2LE, I64, 2, L, E),
        "experts": E,
        "decoding": it.decoding,
        "ids": 0 if it.ids_LTK is None else at(it.ids_LTK, I32, L, T, K),
        "weights": 0 if it.weights_LTK is None else at(it.weights_LTK, F32, L, T, K),
    }


def _most(it: Stack) -> tuple[int, int]:
    """Experts of a layer, and of a token in it, at most."""
    routers = [layer.block.router for layer in it.layers if layer.block.router is not None]
    most = max((to.matrix.rows for to in routers), default=0), max((to.top_k for to in routers), default=0)
    it.native["most"] = most
    return most


def _layer(it: Layer) -> Any:
    D, mlp = len(it.block.pre_norm), it.mlp
    assert (it.bank is None) == (it.block.router is None), "experts without a router, or a router without experts"
    ends = it.bank is None and mlp is None
    assert ends == (it.block.o is not None and it.block.post_norm is None), "a norm in front of nothing, or none"
    assert it.block.o is not None or it.block.post_norm is None, "a second norm without a mixer"
    if it.bank is not None and it.block.router is not None:
        assert it.bank.layout.hidden == D, f"experts of {it.bank.layout.hidden} values, not {D}"
        assert it.bank.experts == it.block.router.matrix.rows, "another number of experts than the router's"
    if mlp is not None:
        shapes = mlp.gate_up.rows, mlp.gate_up.cols, mlp.down.rows
        rows = (2 if mlp.activation.gated else 1) * mlp.down.cols
        assert shapes == (rows, D, D), f"an MLP of {shapes} on {D} values, {mlp.down.cols} wide"
    gate = it.shared_gate if mlp is not None else None
    assert gate is None or (gate.rows, gate.cols) == (1, D), "a shared gate of another shape"
    return _cpu.DecoderLayer(
        block=block(it.block),
        bank=None if it.bank is None else bank(it.bank),
        gate_up=None if mlp is None else stacked(mlp.gate_up),
        down=None if mlp is None else matrix(mlp.down),
        shared_gate=None if gate is None else matrix(gate),
        activation=activation(SWIGLU if mlp is None else mlp.activation),
        tail=None if it.tail is None else _tail(it.tail, D, it),
    )


def _tail(it: Tail, D: int, of: Layer) -> Any:
    assert of.bank is not None, "norms of experts that are not there"
    assert of.mlp is not None, "norms of an MLP that is not there"
    assert of.shared_gate is None, "norms of an MLP with a gate"
    rows = {name: at(getattr(it, name), F32, D) for name in ("mlp_in", "mlp_out", "experts_out", "out")}
    return _cpu.Tail(**rows, scale=at(it.scale, F32, 1))
