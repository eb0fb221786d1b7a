"""Ops of layers between gates, of decays by key and of state spaces as C++, for `backend.py`, which has the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from ..context import Context
from . import prepare
from .prepare import F32, at


class MoreOps:
    """In a context."""

    context: Context

    def mul_(self, y_TC: Tensor, by_TC: Tensor) -> None:
        (T, C), (y, y_stride), (by, by_stride) = y_TC.shape, prepare.rows(y_TC), prepare.rows(by_TC)
        assert by_TC.shape == (T, C), f"{list(by_TC.shape)} for {[T, C]}"
        _cpu.mul(self.context.native, y, y_stride, by, by_stride, T, C)

    def sigmoid_mul_(self, y_TC: Tensor, gate_TG: Tensor) -> None:
        self._gate(y_TC, gate_TG, soft=False)

    def softplus_mul_(self, y_TC: Tensor, gate_TG: Tensor) -> None:
        self._gate(y_TC, gate_TG, soft=True)

    def _gate(self, y_TC: Tensor, gate_TG: Tensor, soft: bool) -> None:
        (T, C), G = y_TC.shape, gate_TG.shape[1]
        assert C % G == 0, f"{G} gates of {C} values"
        _cpu.gate_mul(self.context.native, at(y_TC, F32, T, C), at(gate_TG, F32, T, G), T, C, gates=G, soft=soft)

    def key_gates(
        self, dt_TR: Tensor, b_TH: Tensor, rate_H: Tensor, dt_bias_R: Tensor, least: float | None = None
    ) -> tuple[Tensor, Tensor]:
        (T, H), R = b_TH.shape, dt_bias_R.shape[0]
        assert R % H == 0, f"{R} decays of {H} heads"
        decay, beta = torch.empty(T, H, R // H), torch.empty(T, H)
        _cpu.key_gates(
            self.context.native, dt=at(dt_TR, F32, T, R), b=at(b_TH, F32, T, H), rate=at(rate_H, F32, H),
            dt_bias=at(dt_bias_R, F32, R), decay=decay.data_ptr(), beta=beta.data_ptr(), tokens=T, heads=H, keys=R // H,
            least=least or 0.0,
        )  # fmt: skip
        return decay, beta

    def gated_norm(self, y_TC: Tensor, z_TC: Tensor, weight_C: Tensor, eps: float, groups: int = 1) -> Tensor:
        (T, C), (y, y_stride), (z, z_stride) = y_TC.shape, prepare.rows(y_TC), prepare.rows(z_TC)
        assert z_TC.shape == (T, C), f"{list(z_TC.shape)} for {[T, C]}"
        assert C % groups == 0, f"{C} channels in {groups} groups"
        out = torch.empty(T, C)
        _cpu.gated_norm(
            self.context.native,
            y=y,
            y_stride=y_stride,
            z=z,
            z_stride=z_stride,
            weight=at(weight_C, F32, C),
            out=out.data_ptr(),
            tokens=T,
            d=C,
            groups=groups,
            eps=eps,
        )
        return out

    def state_space(
        self,
        x_THv: Tensor,
        b_TGk: Tensor,
        c_TGk: Tensor,
        dt_TH: Tensor,
        rate_H: Tensor,
        dt_bias_H: Tensor,
        skip_H: Tensor,
        dt_range: tuple[float, float],
        state_LHkv: Tensor,
        slots_S: Tensor,
        starts_S1: Tensor,
        contexts_S: Tensor,
    ) -> Tensor:
        (T, H, values), (_T, G, keys) = x_THv.shape, b_TGk.shape
        assert c_TGk.shape == b_TGk.shape, f"{list(c_TGk.shape)} to read {list(b_TGk.shape)}"
        assert H % G == 0, f"{H} heads on {G}"
        (x, x_stride), (b, b_stride), (c, c_stride) = (prepare.heads(one) for one in (x_THv, b_TGk, c_TGk))
        dt, dt_stride = prepare.rows(dt_TH)
        out = torch.empty(T, H, values)
        _cpu.state_space(
            self.context.native,
            x=x,
            x_stride=x_stride,
            values_in=b,
            in_stride=b_stride,
            by=c,
            by_stride=c_stride,
            dt=dt,
            dt_stride=dt_stride,
            rate=at(rate_H, F32, H),
            dt_bias=at(dt_bias_H, F32, H),
            skip=at(skip_H, F32, H),
            least=dt_range[0],
            most=dt_range[1],
            state=at(state_LHkv, F32, state_LHkv.shape[0], H, keys, values),
            out=out.data_ptr(),
            tokens=T,
            groups=G,
            heads=H,
            keys=keys,
            values=values,
            **prepare.sequences(slots_S, starts_S1, contexts_S),
        )
        return out
