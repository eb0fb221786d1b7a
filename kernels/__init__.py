"""The op list. A backend is a module that has every function of `Ops`; it is chosen once, by name.

`reference` is the plain twin in torch, `cpu` the C++ kernels. Shapes, dtypes and formulas are in `reference.py`.
This package imports nothing else of ours, and knows no model.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor

from .formats import FORMATS, ExpertLayout, Format
from .reference import Scoring
from .weights import ExpertBank, Matrix

__all__ = ["BACKENDS", "FORMATS", "ExpertBank", "ExpertLayout", "Format", "Matrix", "Ops", "Scoring", "load"]

BACKENDS = ("cpu", "reference")


class Ops(Protocol):
    """Every op, one a line; documented in `reference.py`."""

    # fmt: off
    def quantize(self, values_RC: Tensor, format: Format) -> Tensor: ...
    def dequantize(self, matrix: Matrix) -> Tensor: ...
    def embed(self, table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor: ...
    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor: ...
    def rmsnorm_(self, x_TNd: Tensor, weight: Tensor, eps: float) -> None: ...
    def add_rmsnorm_(self, x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor: ...
    def linear(self, x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor: ...
    def rope_(self, x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor) -> None: ...
    def kv_write_(self, k_PGBd: Tensor, v_PGBd: Tensor, k_TGd: Tensor, v_TGd: Tensor, slots_T: Tensor) -> None: ...
    def attention(self, q_TNd: Tensor, k_PGBd: Tensor, v_PGBd: Tensor, tables_SM: Tensor, starts_S1: Tensor, contexts_S:
    Tensor, scale: float) -> Tensor: ...
    def route(self, logits_TE: Tensor, top_k: int, scoring: Scoring, renormalise: bool) -> tuple[Tensor, Tensor]: ...
    def silu_mul(self, gate_up_T2F: Tensor) -> Tensor: ...
    def gated_add_(self, y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None) -> None: ...
    def experts(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank) -> Tensor: ...
    # fmt: on


def load(name: str) -> Ops:
    """The backend called `name`: one of `BACKENDS`."""
    return cast(Ops, importlib.import_module(f".{name}", __name__))
