"""The op list as C++: checks, output tensors, addresses. Every op's twin is in `reference.py`.

A wrong shape, dtype or stride is our own mistake, hence `assert`, with the names of `reference.py`. Tensors go over
as addresses: the extension does not know torch. What is the same at every call is kept ready (`prepare.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu, reference
from ..blocks import ggml, rounding
from ..blocks.cache_rows import Rows
from ..context import Context
from ..decoder_layer import Block, Places, Router, Stack, compose, compose_layers
from ..formats import FORMATS, Format
from ..packed import FORMAT_OF_DTYPE, ExpertBank, Matrix
from ..passes.tally import Choice, Tally
from ..recipes import SWIGLU, Activation
from . import prepare, prepare_layers
from .more_ops import MoreOps
from .norms import NormOps
from .prepare import F32, I32, I64, U8, at
from .sparse_ops import SparseOps
from .stream_ops import StreamOps

ROUNDED_HERE = ("q8_0", "q4_0")  # the other block formats are rounded to by torch: slower, once, while loading


class CpuOps(NormOps, SparseOps, StreamOps, MoreOps):
    """The ops in a context: another one may be set between two calls, and holds from the next on."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def quantize(self, values_RC: Tensor, format: Format) -> Tensor:
        R, C = values_RC.shape
        assert format.fits(C), f"{C} columns in {format.name}"
        if format.is_block and format.name not in ROUNDED_HERE:
            return rounding.pack(values_RC, format)
        source = FORMATS[FORMAT_OF_DTYPE[values_RC.dtype]].code
        out = torch.empty(R, format.row_bytes(C), dtype=U8)
        _cpu.quantize(
            self.context.native, at(values_RC, values_RC.dtype, R, C), source, R, C, format.code, out.data_ptr()
        )
        return out

    def repack(self, blocks_RB: Tensor, format: Format, cols: int) -> Tensor:
        if format.name in ggml.GRIDS:
            return reference.repack(blocks_RB, format, cols)
        R, kind = blocks_RB.shape[0], ggml.FILE_BLOCKS[format.name]
        out = torch.empty(R, format.row_bytes(cols), dtype=U8)
        blocks = at(blocks_RB, U8, R, cols // kind.weights * kind.bytes)
        _cpu.repack(self.context.native, blocks, R, cols, format.code, out.data_ptr())
        return out

    def dequantize(self, matrix: Matrix) -> Tensor:
        out = torch.empty(matrix.rows, matrix.cols)
        _cpu.dequantize(self.context.native, prepare.matrix(matrix), out.data_ptr())
        return out

    def embed(self, table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor:
        (T,) = ids_T.shape
        out = torch.empty(T, table.cols)
        _cpu.embed(self.context.native, prepare.matrix(table), at(ids_T, I64, T), T, scale, out.data_ptr())
        return out

    def linear(self, x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor:
        T, C = x_TC.shape
        assert x_TC.dtype == F32, f"{x_TC.dtype}"
        assert weight.cols == C, f"{C} values, {weight.cols} columns"
        assert C == 1 or x_TC.stride(1) == 1, f"strides {x_TC.stride()}"
        bias = 0 if bias_R is None else at(bias_R, F32, weight.rows)
        out = torch.empty(T, weight.rows)
        _cpu.linear(
            self.context.native, x_TC.data_ptr(), x_TC.stride(0), T, prepare.matrix(weight), bias, out.data_ptr()
        )
        return out

    def place_qkv_(
        self,
        qkv_TR: Tensor,
        k_PGBd: Rows,
        v_PGBv: Rows,
        slots_T: Tensor,
        cos_Pr: Tensor,
        sin_Pr: Tensor,
        positions_T: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        clip: float | None,
        v_norm: Tensor | None = None,
        shared: bool = False,
        v_scale: float = 1.0,
    ) -> None:
        (T, R), (_, G, _, d), v = qkv_TR.shape, k_PGBd.shape, v_PGBv.shape[3]
        N = (R - (0 if shared else G * v)) // d - G
        assert N > 0, f"{R} values with {G} heads of keys and of values"
        assert (N + G) * d + (0 if shared else G * v) == R, f"{R} values in heads of {d} and {v}"
        assert not shared or v == d, f"keys of {d} that serve as values of {v}"
        assert (q_norm is None) == (k_norm is None), "a norm for queries or keys alone"
        _cpu.place_qkv(
            self.context.native,
            qkv=at(qkv_TR, F32, T, R),
            tokens=T,
            heads=N,
            cache=prepare.cache_to_write(k_PGBd, v_PGBv),
            rope=prepare.rope(cos_Pr, sin_Pr, d),
            positions=at(positions_T, I32, T),
            slots=at(slots_T, I64, T),
            q_norm=prepare.norm(q_norm, d, N),
            k_norm=prepare.norm(k_norm, d, G),
            v_norm=prepare.norm(v_norm, v, 1),
            shared=shared,
            v_scale=v_scale,
            eps=eps,
            clip=prepare.limit(clip),
        )

    def store_rows_(self, rows_PGBd: Rows, slots_T: Tensor, values_TGd: Tensor) -> None:
        reference.store_rows_(rows_PGBd, slots_T, values_TGd)  # in C++ it is a part of other ops

    def attention(
        self,
        q_TNd: Tensor,
        k_PGBd: Rows,
        v_PGBd: Rows,
        tables_SM: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        scale: float,
        window: int | None = None,
        sinks_N: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        T, N, d = q_TNd.shape
        S, M = tables_SM.shape
        assert k_PGBd.shape[3] == d, f"heads of {d} on a cache of {k_PGBd.shape[3]}"
        assert N % k_PGBd.shape[1] == 0, f"{N} heads on {k_PGBd.shape[1]}"
        q, q_stride = prepare.heads(q_TNd)
        out = torch.empty(T, N, v_PGBd.shape[3])
        _cpu.attention(
            self.context.native,
            q=q,
            q_stride=q_stride,
            cache=prepare.cache(k_PGBd, v_PGBd),
            tables=at(tables_SM, I32, S, M),
            starts=at(starts_S1, I32, S + 1),
            contexts=at(contexts_S, I32, S),
            sequences=S,
            table_len=M,
            heads=N,
            scale=scale,
            window=prepare.window(window),
            chunk=prepare.chunk(chunk),
            sinks=prepare.sinks(sinks_N, N),
            out=out.data_ptr(),
        )
        return out

    def attention_block(
        self,
        x_TD: Tensor,
        update_TD: Tensor | None,
        block: Block,
        places: Places,
        rows_R: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Choice | None]:
        if block.by_ops:
            return compose(self, x_TD, update_TD, block, places, rows_R)
        T, D = x_TD.shape
        there = prepare_layers.places(places)
        assert there.tokens == T, f"{T} tokens, {there.tokens} positions"
        x_RD, rows = _going_on(x_TD, rows_R)
        R = x_RD.shape[0]
        h_RD = torch.empty(R, D)
        choice = None
        if block.router is not None and R > 0:
            choice = torch.empty(R, block.router.top_k, dtype=I32), torch.empty(R, block.router.top_k)
        _cpu.attention_block(
            self.context.native,
            prepare_layers.block(block),
            there,
            x=at(x_TD, F32, T, D),
            update=0 if update_TD is None else at(update_TD, F32, T, D),
            tokens=T,
            rows=rows,
            count=R,
            x_out=x_RD.data_ptr(),
            h=h_RD.data_ptr(),
            ids=0 if choice is None else choice[0].data_ptr(),
            weights=0 if choice is None else choice[1].data_ptr(),
        )
        return x_RD, h_RD, choice

    def layers(
        self, x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None, tally: Tally | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if stack.by_ops:
            return compose_layers(self, x_TD, stack, places, rows_R, tally)
        T, D = x_TD.shape
        there = prepare_layers.places(places)
        assert there.tokens == T, f"{T} tokens, {there.tokens} positions"
        x_RD, rows = _going_on(x_TD, rows_R)
        update_TD, distinct_L = torch.empty(T, D), torch.empty(len(stack.layers), dtype=I32)
        _cpu.layers(
            self.context.native,
            prepare_layers.stack(stack),
            there,
            x=at(x_TD, F32, T, D),
            tokens=T,
            rows=rows,
            count=x_RD.shape[0],
            x_out=x_RD.data_ptr(),
            update=update_TD.data_ptr(),
            distinct=distinct_L.data_ptr(),
            **prepare_layers.tally(tally, stack, T),
        )
        return x_RD, update_TD[: x_RD.shape[0]], distinct_L

    def route(self, x_TD: Tensor, router: Router, ids_TK: Tensor | None = None) -> Choice:
        (T, D), K, given = x_TD.shape, router.top_k, ids_TK is not None
        ids, weights = torch.empty(T, K, dtype=I32) if ids_TK is None else ids_TK, torch.empty(T, K)
        to = prepare_layers.router(router, D)
        _cpu.route(self.context.native, at(x_TD, F32, T, D), T, to, given, at(ids, I32, T, K), weights.data_ptr())
        return ids, weights

    def argmax(self, logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        S, V = logits_SV.shape
        values, ids = (torch.empty(S), torch.empty(S, dtype=I64)) if to is None else to
        if to is not None:
            at(values, F32, S), at(ids, I64, S)
        _cpu.argmax(self.context.native, at(logits_SV, F32, S, V), S, V, values.data_ptr(), ids.data_ptr())
        return values, ids

    def glu(self, gate_up_T2F: Tensor, activation: Activation = SWIGLU) -> Tensor:
        T, width = gate_up_T2F.shape
        F = width // 2 if activation.gated else width
        out = torch.empty(T, F)
        how = prepare.activation(activation)
        _cpu.glu(self.context.native, at(gate_up_T2F, F32, T, width), out.data_ptr(), T, F, how)
        return out

    def gated_add_(
        self, y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None, to_TD: Tensor | None = None
    ) -> None:
        if to_TD is not None:  # by way of a copy: only tests have a sum go elsewhere in RAM
            sum_TD = y_TD.clone()
            self.gated_add_(sum_TD, z_TD, gate_T1)
            to_TD.copy_(sum_TD)
            return
        T, D = y_TD.shape
        gate = 0 if gate_T1 is None else at(gate_T1, F32, T, 1)
        _cpu.gated_add(self.context.native, at(y_TD, F32, T, D), at(z_TD, F32, T, D), gate, T, D)

    def scale_(self, x_TC: Tensor, by_1: Tensor) -> None:
        T, C = x_TC.shape
        _cpu.scale(self.context.native, at(x_TC, F32, T, C), at(by_1, F32, 1), T, C)

    def scale_rows_(self, x_TNd: Tensor, by_P: Tensor, positions_T: Tensor) -> None:
        (T, _, d), by = x_TNd.shape, at(by_P, F32, *by_P.shape)
        x, positions = prepare.head_rows(x_TNd), at(positions_T, I32, T)
        _cpu.scale_rows(self.context.native, **x, d=d, by=by, positions=positions)

    def rotate_(self, x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor) -> None:
        x = prepare.head_rows(x_TNd)
        positions = at(positions_T, I32, x_TNd.shape[0])
        _cpu.rotate(self.context.native, **x, rope=prepare.rope(cos_Pr, sin_Pr, x_TNd.shape[2]), positions=positions)

    def linear_by_head(self, x_TNc: Tensor, weight: Matrix) -> Tensor:
        T, N, c = x_TNc.shape
        assert weight.cols == c, f"{c} values, {weight.cols} columns"
        assert weight.rows % N == 0, f"{weight.rows} rows for {N} heads"
        out = torch.empty(T, N, weight.rows // N)
        x = prepare.head_rows(x_TNc)
        _cpu.linear_by_head(self.context.native, **x, weight=prepare.matrix(weight), y=out.data_ptr())
        return out

    def short_conv(
        self,
        x_TC: Tensor,
        weight_CW: Tensor,
        state_LCw: Tensor,
        slots_S: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
        bias_C: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        (T, C), taps = x_TC.shape, weight_CW.shape[1]
        assert taps > 1, f"{taps} taps"
        x, x_stride = prepare.rows(x_TC)
        out = torch.empty(T, C)
        _cpu.short_conv(
            self.context.native,
            x=x,
            x_stride=x_stride,
            weights=at(weight_CW, F32, C, taps),
            state=at(state_LCw, F32, state_LCw.shape[0], C, taps - 1),
            out=out.data_ptr(),
            channels=C,
            taps=taps,
            bias=0 if bias_C is None else at(bias_C, F32, C),
            silu=silu,
            **prepare.sequences(slots_S, starts_S1, contexts_S),
        )
        return out

    def delta_gates(self, ba_TJ: Tensor, rate_H: Tensor, dt_bias_H: Tensor) -> tuple[Tensor, Tensor]:
        T, H = ba_TJ.shape[0], ba_TJ.shape[1] // 2
        decay, beta = torch.empty(T, H), torch.empty(T, H)
        _cpu.delta_gates(
            self.context.native,
            ba=at(ba_TJ, F32, T, 2 * H),
            rate=at(rate_H, F32, H),
            dt_bias=at(dt_bias_H, F32, H),
            decay=decay.data_ptr(),
            beta=beta.data_ptr(),
            tokens=T,
            heads=H,
        )
        return decay, beta

    def delta_rule(
        self,
        q_TGk: Tensor,
        k_TGk: Tensor,
        v_THv: Tensor,
        decay_TH: Tensor,
        beta_TH: Tensor,
        state_LHkv: Tensor,
        slots_S: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
    ) -> Tensor:
        (T, G, keys), (_T, H, values) = q_TGk.shape, v_THv.shape
        assert k_TGk.shape == q_TGk.shape, f"keys {list(k_TGk.shape)} for queries {list(q_TGk.shape)}"
        assert H % G == 0, f"{H} heads on {G}"
        (q, q_stride), (k, k_stride), (v, v_stride) = (prepare.heads(x) for x in (q_TGk, k_TGk, v_THv))
        out, by_key = torch.empty(T, H, values), decay_TH.dim() == 3
        _cpu.delta_rule(
            self.context.native,
            q=q,
            q_stride=q_stride,
            k=k,
            k_stride=k_stride,
            v=v,
            v_stride=v_stride,
            decay=at(decay_TH, F32, T, H, *(keys,) * by_key),
            beta=at(beta_TH, F32, T, H),
            state=at(state_LHkv, F32, state_LHkv.shape[0], H, keys, values),
            out=out.data_ptr(),
            tokens=T,
            groups=G,
            heads=H,
            keys=keys,
            values=values,
            by_key=by_key,
            **prepare.sequences(slots_S, starts_S1, contexts_S),
        )
        return out

    def experts(
        self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank, local_E: Tensor | None = None
    ) -> Tensor:
        T, K = ids_TK.shape
        if local_E is not None:
            ids_TK = local_E[ids_TK.long()]
        out = torch.empty_like(x_TD)
        chosen = at(x_TD, F32, T, bank.layout.hidden), T, at(ids_TK, I32, T, K), at(weights_TK, F32, T, K), K
        _cpu.experts(self.context.native, *chosen, prepare.bank(bank), out.data_ptr())
        return out

    def weighted_rows(self, rows_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        """What `experts` does last: y[t] = sum_k weights[t, k] * rows[t, k], float32 [T, D], with the same bits."""
        T, K, D = rows_TKD.shape
        out = torch.empty(T, D)
        _cpu.weighted_rows(self.context.native, at(rows_TKD, F32, T, K, D), at(weights_TK, F32, T, K), T, K, D,
                           out.data_ptr())  # fmt: skip
        return out


def _going_on(x_TD: Tensor, rows_R: Tensor | None) -> tuple[Tensor, int]:
    """Where x of the tokens goes that go on after attention, and the address of their rows; x itself and 0: all."""
    if rows_R is None:
        return x_TD, 0
    address = at(rows_R, I64, *rows_R.shape) or x_TD.data_ptr()  # an empty tensor has no address, and 0 means all
    return torch.empty(rows_R.shape[0], x_TD.shape[1]), address
