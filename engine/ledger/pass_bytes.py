"""From what a model is to the bytes a pass must read, and from bytes to seconds; before a run, or for any routing.

    bytes = distinct experts * bytes of an expert        experts
          + every matrix that each token needs            dense
          + keys and values of the context, read + written   kv
          + the head, if logits are wanted                head
    seconds = sum over groups of bytes / bandwidth of the kernel that reads that format
            + layers * what a layer costs besides + what a pass costs besides

The ledger counts the experts from what was chosen, and the rest by the functions here. The second sum is the
bandwidth model of one tier. Models that are not loaded, and machines with more tiers, are the business of `planning/`,
which counts the same bytes and takes the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.packed import Matrix, Stacked
from ...loaders.spec import ModelSpec
from ...loaders.weights.model_weights import LayerWeights, ModelWeights
from .passes import CPU_DRAM, Bytes

EXPERTS, DENSE, KV, HEAD = "experts", "dense", "kv", "head"
# What crosses a link besides hidden states of experts: choices and their weights, a pass's inputs, what sampling needs,
# experts that were copied before it was known that nobody would choose them.
ROUTING, INPUTS, SAMPLES, UNCHOSEN = "routing", "inputs", "samples", "unchosen"
GROUPS = (EXPERTS, UNCHOSEN, DENSE, KV, HEAD, ROUTING, INPUTS, SAMPLES)


@dataclass(frozen=True)
class DenseSizes:
    """What the dense part of a pass is made of, in bytes: all layers with the final norm, of it what follows the last
    layer's keys and values, one row of the embedding; how many layers there are; and the head."""

    layers: int
    tail: int
    embedding_row: int
    count: int
    head: int


def dense_sizes(weights: ModelWeights) -> DenseSizes:
    """The sizes of a model, of real weights or of such on the `meta` device."""
    last = weights.layers[-1]
    before_tail = [last.attn_norm, last.qkv_bias, last.q_norm, last.k_norm, last.qkv]
    tail = layer_dense_bytes(last) - sum(part.nbytes for part in before_tail if part is not None)
    return DenseSizes(
        layers=sum(map(layer_dense_bytes, weights.layers)) + weights.final_norm.nbytes,
        tail=tail + weights.final_norm.nbytes,
        embedding_row=weights.embed.format.row_bytes(weights.embed.cols),
        count=len(weights.layers),
        head=weights.head.nbytes,
    )


def common_bytes(
    sizes: DenseSizes,
    token_bytes: int,
    *,
    tokens: int,
    context: int,
    logits: bool,
    main: str = CPU_DRAM,
    table: str = CPU_DRAM,
) -> Bytes:
    """What a pass reads besides routed experts, by group; `main`: the memory of it all, `table`: that of the
    embedding."""
    rows = tokens * sizes.embedding_row
    groups = {
        DENSE: dense_bytes(sizes, tokens, logits) - (rows if table != main else 0),
        KV: kv_bytes(sizes, tokens, context, token_bytes, logits),
    }
    if logits:
        groups[HEAD] = sizes.head
    return {main: groups} if table == main else {main: groups, table: {DENSE: rows}}


def dense_bytes(sizes: DenseSizes, tokens: int, logits: bool) -> int:
    """Bytes of the weights that a pass reads, but for routed experts and head. A pass that nobody wants logits of ends
    with the keys and values of the last layer."""
    return sizes.layers + tokens * sizes.embedding_row - (0 if logits else sizes.tail)


def kv_bytes(sizes: DenseSizes, tokens: int, context: int, token_bytes: int, logits: bool) -> int:
    """Bytes of the cache: `tokens` written in every layer, `context` read in every layer that attends."""
    attending = sizes.count if logits else sizes.count - 1
    return tokens * token_bytes + context * token_bytes // sizes.count * attending


def layer_dense_bytes(layer: LayerWeights) -> int:
    """Bytes of one layer without its routed experts."""
    vectors = (layer.attn_norm, layer.qkv_bias, layer.q_norm, layer.k_norm, layer.o_bias, layer.mlp_norm)
    matrices: list[Matrix | Stacked | None] = [layer.qkv, layer.o, layer.router, layer.shared_gate]
    if layer.mlp is not None:
        matrices += [layer.mlp.gate_up, layer.mlp.down]
    return sum(v.nbytes for v in vectors if v is not None) + sum(m.nbytes for m in matrices if m is not None)


def bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the cache, over all layers."""
    return spec.kv_elements_per_token * dtype.itemsize
