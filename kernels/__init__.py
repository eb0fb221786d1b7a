"""The op list. A backend is a module or an object that has every function of `Ops`; it is chosen once, by name.

`reference` is the plain twin in torch, `cpu` the C++ kernels in a context, `gpu` the Triton kernels. Shapes, dtypes and
formulas are in `reference.py`.
This package imports nothing else of ours, and knows no model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from .formats import FORMATS, ExpertLayout, Format

if TYPE_CHECKING:
    from torch import Tensor

    from .context import Context
    from .decoder_layer import Block, Choice, Places, Router, Stack
    from .packed import ExpertBank, Matrix
    from .recipes import Activation

__all__ = ["BACKENDS", "FORMATS", "ExpertLayout", "Format", "Ops", "load"]

BACKENDS = ("cpu", "reference")  # what the engine can be asked for: it places no tensors on a GPU yet


class Ops(Protocol):
    """Every op, one a line; documented in `reference.py`."""

    # fmt: off
    def quantize(self, values_RC: Tensor, format: Format) -> Tensor: ...
    def repack(self, blocks_RB: Tensor, format: Format, cols: int) -> Tensor: ...
    def dequantize(self, matrix: Matrix) -> Tensor: ...
    def embed(self, table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor: ...
    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor: ...
    def add_rmsnorm_(self, x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor: ...
    def linear(self, x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor: ...
    def place_qkv_(self, qkv_THd: Tensor, k_PGBd: Tensor, v_PGBd: Tensor, slots_T: Tensor, cos_Pr: Tensor, sin_Pr:
    Tensor, positions_T: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float, clip: float | None,
    ) -> None: ...
    def attention(self, q_TNd: Tensor, k_PGBd: Tensor, v_PGBd: Tensor, tables_SM: Tensor, starts_S1: Tensor, contexts_S:
    Tensor, scale: float, window: int | None = None, sinks_N: Tensor | None = None) -> Tensor: ...
    def attention_block(self, x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places,
    rows_R: Tensor | None = None) -> tuple[Tensor, Tensor, Choice | None]: ...
    def layers(self, x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def rotate_(self, x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor) -> None: ...
    def linear_by_head(self, x_TNc: Tensor, weight: Matrix) -> Tensor: ...
    def short_conv(self, x_TC: Tensor, weight_CW: Tensor, state_LCw: Tensor, slots_S: Tensor, starts_S1: Tensor,
    contexts_S: Tensor) -> Tensor: ...
    def delta_rule(self, q_TGk: Tensor, k_TGk: Tensor, v_THv: Tensor, decay_TH: Tensor, beta_TH: Tensor, state_LHkv:
    Tensor, slots_S: Tensor, starts_S1: Tensor, contexts_S: Tensor) -> Tensor: ...
    def route(self, x_TD: Tensor, router: Router) -> Choice: ...
    def glu(self, gate_up_T2F: Tensor, activation: Activation = ...) -> Tensor: ...
    def gated_add_(self, y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None, to_TD: Tensor | None = None,
    ) -> None: ...
    def argmax(self, logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]: ...
    def experts(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank) -> Tensor: ...
    # fmt: on


def load(name: str, context: Context | None = None) -> Ops:
    """The backend called `name`: one of `BACKENDS`, or "gpu" (OptionError where Triton is not installed). context: how
    "cpu" computes; None is the default `Context()`. The others take no notice of it."""
    if name == "cpu":
        from .context import Context
        from .cpu import CpuOps

        return CpuOps(context or Context())
    return cast(Ops, importlib.import_module(f".{name}", __name__))
