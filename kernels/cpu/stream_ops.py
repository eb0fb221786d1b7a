"""Ops of several residual streams and of entries that stand for several tokens as C++, as `backend.py` has the
others."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from ..context import Context
from . import prepare
from .prepare import F32, I32, I64, at


def streams(x_TmD: Tensor) -> dict[str, int]:
    """float32 [T, m, D], any stride from token to token and from stream to stream."""
    (T, m, D), step = x_TmD.shape, x_TmD.stride()
    assert x_TmD.dtype == F32, f"{x_TmD.dtype}"
    assert D == 1 or step[2] == 1, f"strides {step} of {list(x_TmD.shape)}"
    assert m <= _cpu.MOST_STREAMS, f"{m} streams"
    return {"x": x_TmD.data_ptr(), "token_stride": step[0], "stride": step[1], "tokens": T, "streams": m, "d": D}


class StreamOps:
    """In a context."""

    context: Context

    def stream_weights(
        self, products_TW: Tensor, base_W: Tensor, scale_3: Tensor, rounds: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        T, W = products_TW.shape
        m = int((1 + W) ** 0.5) - 1
        assert (2 + m) * m == W, f"{W} products"
        takes, gives, mixes = torch.empty(T, m), torch.empty(T, m), torch.empty(T, m, m)
        _cpu.stream_weights(
            self.context.native, products=at(products_TW, F32, T, W), base=at(base_W, F32, W),
            scale=at(scale_3, F32, 3), tokens=T, streams=m, rounds=rounds, eps=eps, takes=takes.data_ptr(),
            gives=gives.data_ptr(), mixes=mixes.data_ptr(),
        )  # fmt: skip
        return takes, gives, mixes

    def take_streams(self, x_TnD: Tensor, takes_Tn: Tensor, norm_D: Tensor | None, eps: float) -> Tensor:
        T, n, D = x_TnD.shape
        out, norm = torch.empty(T, D), 0 if norm_D is None else at(norm_D, F32, D)
        _cpu.take_streams(
            self.context.native, **streams(x_TnD), takes=at(takes_Tn, F32, T, n), norm=norm, eps=eps, out=out.data_ptr()
        )
        return out

    def close_streams(
        self, x_TmD: Tensor, mixes_Tmm: Tensor | None, gives_Tm: Tensor, made_TD: Tensor | None
    ) -> Tensor:
        (T, m, D), (gives, gives_stride) = x_TmD.shape, prepare.rows(gives_Tm)
        out, mixes = torch.empty(T, m, D), None if mixes_Tmm is None else mixes_Tmm.contiguous()
        _cpu.close_streams(
            self.context.native, **streams(x_TmD), gives=gives, gives_stride=gives_stride,
            mixes=0 if mixes is None else at(mixes, F32, T, m, m),
            made=0 if made_TD is None else at(made_TD, F32, T, D), out=out.data_ptr(),
        )  # fmt: skip
        return out

    def fit_streams(self, x_TnD: Tensor, by_D: Tensor, eps: float) -> Tensor:
        T, n, D = x_TnD.shape
        out = torch.empty(T, n)
        _cpu.fit_streams(self.context.native, **streams(x_TnD), by=at(by_D, F32, D), eps=eps, out=out.data_ptr())
        return out

    def gate_streams(self, x_TmD: Tensor, open_TC: Tensor) -> Tensor:
        T, m, D = x_TmD.shape
        out = torch.empty(T, D)
        _cpu.gate_streams(self.context.native, **streams(x_TmD), open=at(open_TC, F32, T, m * D), out=out.data_ptr())
        return out

    def rotate_pairs_(
        self, x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor, back: bool = False
    ) -> None:
        T, _, d = x_TNd.shape
        x, rope = prepare.head_rows(x_TNd), prepare.rope(cos_Pr, sin_Pr, d)
        _cpu.rotate_pairs(self.context.native, **x, d=d, rope=rope, positions=at(positions_T, I32, T), back=back)

    def fold_entries_(
        self,
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
        (T, C), rate, (L, series, _, e) = made_TC.shape, len(places_nC), state_LS3e.shape
        assert series * e == C, f"{C} numbers of {series} series of {e}"
        assert series in (1, 2), f"{series} series"
        _cpu.fold_entries(
            self.context.native, made=at(made_TC, F32, T, C), weighed=at(weighed_TC, F32, T, C),
            places=at(places_nC, F32, rate, C), norm=at(norm_e, F32, e), eps=eps, rope=prepare.rope(cos_Pr, sin_Pr, e),
            cache=prepare.cache(rows_P1Be, rows_P1Be), state=at(state_LS3e, F32, L, series, 3, e), series=series,
            rate=rate, page=page, token_slots=at(slots_T, I64, T),
            **prepare.sequences(states_S, starts_S1, contexts_S),
        )  # fmt: skip

    def pool_runs(self, rows_Rnf: Tensor, places_ne: Tensor) -> Tensor:
        (R, n, f), e = rows_Rnf.shape, places_ne.shape[1]
        assert f == 2 * e, f"rows of {f} for keys of {e}"
        out = torch.empty(R, e)
        _cpu.pool_runs(
            self.context.native, rows=at(rows_Rnf, F32, R, n, f), places=at(places_ne, F32, n, e), runs=R, n=n, d=e,
            out=out.data_ptr(),
        )  # fmt: skip
        return out
