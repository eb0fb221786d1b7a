"""Where each tensor of a checkpoint goes: name -> `Target`, from a family's names and allocated weights.

A checkpoint tensor is seen as rows of its last dimension. A target says which run of its rows goes into which packed
matrix, so that q, k and v meet in one matrix and a fused expert tensor is cut into experts without a copy of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ...kernels import FORMATS
from ...kernels.formats import Part
from ...kernels.packed import ExpertBank, Matrix, Mlp
from ..families.family import TensorNames
from ..spec import ModelSpec
from .model_weights import LayerWeights, ModelWeights, TierBanks


@dataclass(frozen=True)
class Piece:
    """Rows [first, first + into.rows) of a checkpoint tensor, and the matrix that they fill; with a `column` the matrix
    is stored the other way round: columns [column, column + into.rows) of rows [first, first + into.cols)."""

    first: int
    into: Matrix
    column: int | None = None


@dataclass(frozen=True)
class Target:
    """The shape that a checkpoint tensor must have, where its rows go, and which choice of format covers it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    group: str = ""  # the field of `Formats` that its format comes from; "": always float32, or bytes as they are
    places: tuple[str, ...] = ()  # of `Formats.own`, of all that it fills
    heads: int = 0  # of queries or keys; rows of other files may have another order within a head

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


Named = Iterator[tuple[str, Target]]
Parts = tuple[Part, ...]


def targets(spec: ModelSpec, names: TensorNames, weights: ModelWeights) -> dict[str, Target]:
    """The target of every tensor that a checkpoint of this spec must have."""
    embed = _whole(weights.embed, "dense" if spec.tied_head else "embed", "embed")
    found = {names.embed: embed, names.final_norm: _vector(weights.final_norm)}
    if not spec.tied_head:
        found[names.head] = _whole(weights.head, "dense", "head")
    for i, layer in enumerate(weights.layers):
        prefix = names.layer.format(layer=i)
        found.update({prefix + name: target for name, target in _layer(spec, names, layer, f"{i}.")})
    return found


def _layer(spec: ModelSpec, names: TensorNames, layer: LayerWeights, at: str) -> Named:
    yield names.attn_norm, _vector(layer.attn_norm)
    yield names.mlp_norm, _vector(layer.mlp_norm)
    yield from _attention(spec, names, layer, at)
    if layer.router is not None and layer.experts is not None:
        yield names.router, _whole(layer.router)
        yield from _experts(names, layer.experts, at)
        if layer.mlp is not None:
            yield from _mlp(layer.mlp, names.shared_gate, names.shared_up, names.shared_down, at)
        if layer.shared_gate is not None:
            yield names.shared_expert_gate, _whole(layer.shared_gate)
    elif layer.mlp is not None:
        yield from _mlp(layer.mlp, names.mlp_gate, names.mlp_up, names.mlp_down, at)


def _attention(spec: ModelSpec, names: TensorNames, layer: LayerWeights, at: str) -> Named:
    att = spec.attention
    start = 0
    roles = (
        ("q", names.q, att.q_rows, att.heads),
        ("k", names.k, att.kv_rows, att.kv_heads),
        ("v", names.v, att.kv_rows, 0),
    )
    for role, name, rows, heads in roles:
        matrix = layer.qkv.slice_rows(start, start + rows)
        yield name + ".weight", replace(_whole(matrix, "dense", at + role), heads=heads)
        if layer.qkv_bias is not None:
            yield name + ".bias", replace(_vector(layer.qkv_bias[start : start + rows]), heads=heads)
        start += rows
    yield names.o + ".weight", _whole(layer.o, "dense", at + "o")
    for name, vector in ((names.o + ".bias", layer.o_bias), (names.q_norm, layer.q_norm), (names.k_norm, layer.k_norm)):
        if vector is not None:
            yield name, _vector(vector)


def _experts(names: TensorNames, bank: ExpertBank | TierBanks, at: str) -> Named:
    """Each tensor holds the rows of some parts, of one expert or of all of the layer one after the other."""
    fused: list[tuple[str | None, Parts]] = [(names.fused_gate_up, ("gate", "up"))]
    separate: list[tuple[str | None, Parts]] = [(names.expert_gate, ("gate",)), (names.expert_up, ("up",))]
    for name, parts in [*(fused if names.fused_gate_up else separate), (names.expert_down, ("down",))]:
        assert name is not None
        places = tuple(at + part for part in parts)
        if "{e}" in name:
            for e in range(bank.experts):
                one = [bank.matrix(e, part) for part in parts]
                yield name.format(e=e), Target((sum(m.rows for m in one), one[0].cols), _stack(one), "experts", places)
            continue
        matrices = [bank.matrix(e, part) for e in range(bank.experts) for part in parts]
        rows, cols = sum(m.rows for m in matrices) // bank.experts, matrices[0].cols
        if names.experts_turned:
            yield name, Target((bank.experts, cols, rows), _turned(matrices, rows), "experts", places)
        else:
            yield name, Target((bank.experts, rows, cols), _stack(matrices), "experts", places)


def _stack(matrices: list[Matrix]) -> tuple[Piece, ...]:
    """Matrices one below the other."""
    ends = accumulate(m.rows for m in matrices)
    return tuple(Piece(end - m.rows, m) for end, m in zip(ends, matrices, strict=True))


def _turned(matrices: list[Matrix], rows: int) -> tuple[Piece, ...]:
    """The same of a tensor whose columns are the matrices' rows, `rows` of them side by side."""
    return tuple(
        Piece(piece.first // rows * piece.into.cols, piece.into, column=piece.first % rows)
        for piece in _stack(matrices)
    )


def _mlp(mlp: Mlp, gate: str, up: str, down: str, at: str) -> Named:
    width = mlp.down.cols
    yield gate, _whole(mlp.gate_up.slice_rows(0, width), "dense", at + "mlp_gate")
    yield up, _whole(mlp.gate_up.slice_rows(width, 2 * width), "dense", at + "mlp_up")
    yield down, _whole(mlp.down, "dense", at + "mlp_down")


def _whole(matrix: Matrix, group: str = "", place: str = "") -> Target:
    return Target((matrix.rows, matrix.cols), (Piece(0, matrix),), group, (place,) if place else ())


def _vector(vector: Tensor) -> Target:
    """A float32 vector is a matrix of one row, so that it is filled like every other."""
    row = Matrix(FORMATS["f32"], 1, vector.numel(), vector.view(1, -1).view(torch.uint8))
    return Target((vector.numel(),), (Piece(0, row),))
