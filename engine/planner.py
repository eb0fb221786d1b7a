"""From what a model is to the bytes a pass must read, and from bytes to seconds; before a run, or for any routing.

    bytes = distinct experts * bytes of an expert        experts
          + every matrix that each token needs            dense
          + keys and values of the context, read + written   kv
          + the head, if logits are wanted                head
    seconds = sum over groups of bytes / bandwidth of the kernel that reads that format

The ledger counts the same bytes from the objects that were touched; the two agree to the byte. The second line is the
plain bandwidth model of one tier: fixed costs per layer and tiers that overlap are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..loaders.spec import ModelSpec
from ..loaders.weights import Formats, LayerWeights, ModelWeights, allocate
from .kvcache import bytes_per_token
from .ledger import CPU_DRAM, Bytes
from .machine import Profile

EXPERTS, DENSE, KV, HEAD = "experts", "dense", "kv", "head"


def pass_bytes(
    spec: ModelSpec,
    formats: Formats,
    kv_dtype: torch.dtype,
    *,
    tokens: int,
    contexts: Sequence[int],
    distinct_experts: Sequence[int],
    logits: bool = True,
) -> Bytes:
    """Bytes of one pass with everything in RAM: `tokens` new tokens, the cache lengths after the pass by sequence, and
    how many distinct experts each MoE layer chose."""
    weights = allocate(spec, formats, "meta")
    banks = [layer.experts for layer in weights.layers if layer.experts is not None]
    groups = {
        EXPERTS: sum(n * bank.layout.bytes for n, bank in zip(distinct_experts, banks, strict=True)),
        DENSE: dense_bytes(weights, tokens),
        KV: (sum(contexts) + tokens) * bytes_per_token(spec, kv_dtype),
    }
    if logits:
        groups[HEAD] = weights.head.nbytes
    return {CPU_DRAM: groups}


def dense_bytes(weights: ModelWeights, tokens: int) -> int:
    """Bytes of the weights that every pass reads: all of the layers but their routed experts, the final norm, and one
    row of the embedding per token. The head is booked apart."""
    rows = tokens * weights.embed.format.row_bytes(weights.embed.cols)
    return sum(map(layer_dense_bytes, weights.layers)) + weights.final_norm.nbytes + rows


def layer_dense_bytes(layer: LayerWeights) -> int:
    """Bytes of one layer without its routed experts."""
    vectors = (layer.attn_norm, layer.qkv_bias, layer.q_norm, layer.k_norm, layer.o_bias, layer.mlp_norm)
    matrices = [layer.qkv, layer.o, layer.router, layer.shared_gate]
    if layer.mlp is not None:
        matrices += [layer.mlp.gate_up, layer.mlp.down]
    return sum(v.nbytes for v in vectors if v is not None) + sum(m.nbytes for m in matrices if m is not None)


def predict_seconds(read: Bytes, profile: Profile, formats: Formats, kv_dtype: torch.dtype) -> float:
    """Seconds for the bytes of a pass on the CPU, at the bandwidths that this machine's kernels were measured to
    have."""
    dense = profile.linear[formats.dense.name]
    by_group = {
        EXPERTS: profile.experts[formats.experts.name],
        DENSE: dense,
        HEAD: dense,
        KV: profile.linear["f32" if kv_dtype == torch.float32 else "bf16"],
    }
    return sum(size / by_group[group] for group, size in read.get(CPU_DRAM, {}).items())
