"""Weights of grouped-query attention: q, k and v stacked into one matrix, one pass over memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ....kernels.packed import Matrix, Stacked
from ...families.family import TensorNames
from ...spec import AttentionSpec
from .allocator import Allocator, FormatOf
from .target import Change, Named, Piece, Target, vector, whole


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """Norms, biases and sinks float32; q_norm and k_norm of each head, or of all as one row."""

    qkv: Stacked
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    sinks: Tensor | None
    gate: Matrix | None
    o: Matrix
    o_bias: Tensor | None
    block_q: Matrix | None = None  # these four: of a layer that chooses blocks of keys
    block_k: Matrix | None = None
    block_q_norm: Tensor | None = None
    block_k_norm: Tensor | None = None

    # What a pass reads that only keeps keys and values.
    KEEPING = ("qkv", "qkv_bias", "q_norm", "k_norm", "block_k", "block_k_norm")


def allocate(make: Allocator, spec: AttentionSpec, hidden: int, format_of: FormatOf) -> AttentionWeights:
    q_norm = {"none": 0, "plain": 0, "head": spec.head_dim, "full": spec.q_rows}[spec.qk_norm]
    k_norm = {"none": 0, "plain": 0, "head": spec.head_dim, "full": spec.k_rows}[spec.qk_norm]
    roles = "qkv" if spec.own_values else "qk"
    rows = (spec.q_rows, spec.k_rows, spec.v_rows)[: len(roles)]
    return AttentionWeights(
        qkv=make.stacked([format_of(role) for role in roles], rows, hidden),
        qkv_bias=make.vector(spec.qkv_rows) if spec.qkv_bias else None,
        q_norm=make.vector(q_norm) if q_norm else None,
        k_norm=make.vector(k_norm) if k_norm else None,
        sinks=make.vector(spec.heads) if spec.sinks else None,
        gate=make.matrix(format_of("attn_gate"), spec.gate_rows, hidden) if spec.gate_rows else None,
        o=make.matrix(format_of("o"), hidden, spec.out_rows),
        o_bias=make.vector(hidden) if spec.output_bias else None,
        **({} if spec.blocks is None else _of_blocks(make, spec.blocks.heads, spec.blocks.dim, hidden, format_of)),
    )


def _of_blocks(make: Allocator, heads: int, dim: int, hidden: int, format_of: FormatOf) -> dict[str, Any]:
    """Queries [heads dim, hidden] and keys [dim, hidden] of what chooses blocks, and their norms."""
    return {
        "block_q": make.matrix(format_of("block_q"), heads * dim, hidden),
        "block_k": make.matrix(format_of("block_k"), dim, hidden),
        "block_q_norm": make.vector(dim),
        "block_k_norm": make.vector(dim),
    }


def targets(spec: AttentionSpec, names: TensorNames, it: AttentionWeights, at: str, norm: Change) -> Named:
    """The tensors of one layer by name. norm: of the weights of norms."""
    roles = (
        ("q", names.q, spec.q_rows, spec.heads),
        ("k", names.k, spec.k_rows, spec.kv_heads),
        ("v", names.v, spec.v_rows, 0),
    )
    start = 0
    for role, name, rows, heads in roles if spec.own_values else roles[:2]:
        matrix = it.qkv.slice_rows(start, start + rows)
        target = whole(matrix, "dense", at + role)
        if role == "q" and it.gate is not None and names.attn_gate is None:
            target = _with_gate(spec, matrix, it.gate, at)
        yield name + ".weight", replace(target, heads=heads)
        if it.qkv_bias is not None:
            yield name + ".bias", replace(vector(it.qkv_bias[start : start + rows]), heads=heads)
        start += rows
    if it.gate is not None and names.attn_gate is not None:
        yield names.attn_gate, whole(it.gate, "dense", at + "attn_gate")
    yield names.o + ".weight", whole(it.o, "dense", at + "o")
    if it.o_bias is not None:
        yield names.o + ".bias", vector(it.o_bias)
    for name, weights in ((names.q_norm, it.q_norm), (names.k_norm, it.k_norm)):
        if weights is not None:
            yield name, vector(weights, norm)
    if names.block_qk and it.block_q is not None and it.block_k is not None:
        pieces = Piece(0, it.block_q), Piece(it.block_q.rows, it.block_k)
        shape = it.block_q.rows + it.block_k.rows, it.block_q.cols
        yield names.block_qk, Target(shape, pieces, "dense", (at + "block_q", at + "block_k"))
    for name, role, chooses in (
        () if names.block_qk else ((names.block_q, "block_q", it.block_q), (names.block_k, "block_k", it.block_k))
    ):
        if chooses is not None:
            yield name, whole(chooses, "dense", at + role)
    for name, weights in ((names.block_q_norm, it.block_q_norm), (names.block_k_norm, it.block_k_norm)):
        if weights is not None:
            yield name, vector(weights, norm)
    if it.sinks is not None:
        yield names.sinks, vector(it.sinks)


def _with_gate(spec: AttentionSpec, q: Matrix, gate: Matrix, at: str) -> Target:
    """Of each head its rows of queries, then those of the gate."""
    pieces, d = [], spec.head_dim
    for head in range(spec.heads):
        rows = head * d, (head + 1) * d
        pieces += [Piece(2 * head * d, q.slice_rows(*rows)), Piece((2 * head + 1) * d, gate.slice_rows(*rows))]
    return Target((2 * spec.q_rows, q.cols), tuple(pieces), "dense", (at + "q", at + "attn_gate"))
