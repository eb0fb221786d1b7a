"""The plain twin of every op, in pure torch, written to be read.

Shapes are in the names: T tokens, S sequences, D hidden size, N query heads, G key/value heads, d head size,
E experts, K experts per token, F width of an MLP, V vocabulary, R rows and C columns of a matrix, P pages, B page size,
M the longest page table. Activations are float32 [tokens, features]; weights are packed (`packed.py`).
Ops whose name ends in `_` write into their first argument.

Nothing here is fast, and nothing here knows a model, a tier or a thread.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from . import blocks
from .blocks import ggml, rounding
from .decoder_layer import AttentionBlock, Choice, Places, Scoring, Stack, compose, compose_layers
from .formats import Format
from .packed import TORCH_DTYPES, ExpertBank, Matrix


def quantize(values_RC: Tensor, format: Format) -> Tensor:
    """Packs float values [R, C] into rows of `format`: uint8 [R, row_bytes]. How block formats round: `rounding.py`."""
    if not format.is_block:
        return values_RC.to(TORCH_DTYPES[format.name]).contiguous().view(torch.uint8)
    return rounding.pack(values_RC, format)


def dequantize(matrix: Matrix) -> Tensor:
    """Unpacks a matrix into float32 [R, C]; a float32 matrix is returned as a view of its own bytes."""
    if not matrix.format.is_block:
        return matrix.data.view(TORCH_DTYPES[matrix.format.name]).float()
    return blocks.weights(blocks.split(matrix.data, matrix.format, matrix.cols))


def repack(blocks_RB: Tensor, format: Format, cols: int) -> Tensor:
    """Rows of `cols` weights as a GGUF file has them, uint8 [R, bytes], as rows of the format of the same name: uint8
    [R, row_bytes]. Nothing is rounded."""
    return blocks.join(ggml.read(blocks_RB, format, cols))


def embed(table: Matrix, ids_T: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of the embedding table [V, D] for token ids int64 [T], times `scale`: float32 [T, D]."""
    rows = Matrix(table.format, ids_T.numel(), table.cols, table.data[ids_T])
    return dequantize(rows) * scale


def rmsnorm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension: float32, the shape of x."""
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D


def add_rmsnorm_(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, eps: float, scale: float = 1.0) -> Tensor:
    """x += scale * y in place (the residual stream), then returns rmsnorm(x)."""
    x_TD.add_(y_TD, alpha=scale)
    return rmsnorm(x_TD, weight_D, eps)


def linear(x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: float32 [T, R]."""
    y_TR = x_TC @ dequantize(weight).T
    return y_TR if bias_R is None else y_TR + bias_R


def place_qkv_(
    qkv_THd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    slots_T: Tensor,
    cos_Pr: Tensor,
    sin_Pr: Tensor,
    positions_T: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    clip: float | None,
) -> None:
    """Makes queries, keys and values of a fused projection ready for attention: norms, clips and rotates them in place,
    and stores keys and values in one layer's cache.

    qkv float32 [T, H, d] with H = N + 2 G heads: queries, keys, values. The norm weights are float32 [d] (every head on
    its own) or [N d] and [G d] (all heads as one row); both or neither. `clip` bounds all values to +- clip. cos and
    sin are float32 [positions, r]; positions int32 [T]. The cache is float32 or bfloat16 [P, G, B, d]; slots int64 [T]:
    slot = page * B + place in the page.
    """
    G = k_PGBd.shape[1]
    q, k, v = qkv_THd.split([qkv_THd.shape[1] - 2 * G, G, G], dim=1)
    for heads, weight in ((q, q_norm), (k, k_norm)):
        if weight is not None:
            rows = heads.reshape(len(heads), -1, len(weight))
            heads.copy_(rmsnorm(rows, weight, eps).view(heads.shape))
    if clip is not None:
        qkv_THd.clamp_(-clip, clip)
    rotate_(qkv_THd[:, : qkv_THd.shape[1] - G], cos_Pr, sin_Pr, positions_T)
    pages, places = slots_T // k_PGBd.shape[2], slots_T % k_PGBd.shape[2]
    k_PGBd[pages, :, places] = k.to(k_PGBd.dtype)
    v_PGBd[pages, :, places] = v.to(v_PGBd.dtype)


def rotate_(x_TNd: Tensor, cos_Pr: Tensor, sin_Pr: Tensor, positions_T: Tensor) -> None:
    """Rotary embedding in place on a view [T, N, d]; rotate-half pairs (i, i + r) of the first 2r dims.

    Source: RoFormer (arXiv 2104.09864), GPT-NeoX pairing.
    """
    r = cos_Pr.shape[1]
    cos, sin = cos_Pr[positions_T.long()].unsqueeze(1), sin_Pr[positions_T.long()].unsqueeze(1)
    a, b = x_TNd[..., :r].clone(), x_TNd[..., r : 2 * r].clone()
    x_TNd[..., :r] = a * cos - b * sin
    x_TNd[..., r : 2 * r] = b * cos + a * sin


def attention(
    q_TNd: Tensor,
    k_PGBd: Tensor,
    v_PGBd: Tensor,
    tables_SM: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    scale: float,
) -> Tensor:
    """Causal grouped-query attention of new tokens over the paged cache: float32 [T, N, d].

    Sequence s owns the query rows starts[s] .. starts[s+1]; its last query sits at position contexts[s] - 1, and its
    keys at positions 0 .. contexts[s] - 1 lie in the pages tables[s, 0], tables[s, 1], ... (int32, all three).
    The keys of the new tokens are in the cache already. Query head n reads key/value head n // (N / G).
    """
    out = torch.empty_like(q_TNd, memory_format=torch.contiguous_format)
    group = q_TNd.shape[1] // k_PGBd.shape[1]
    for s, context in enumerate(contexts_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        pages = tables_SM[s, : -(-context // k_PGBd.shape[2])].long()
        k, v = (c[pages].transpose(0, 1).flatten(1, 2)[:, :context].float() for c in (k_PGBd, v_PGBd))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        q = q_TNd[first:last].transpose(0, 1)
        scores = q @ k.transpose(1, 2) * scale
        places = torch.arange(context, device=q.device)
        scores = scores.masked_fill(places > places[first - last :].unsqueeze(1), float("-inf"))
        out[first:last] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: AttentionBlock, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    """A layer before its experts: x += residual_scale * update, x += residual_scale * attention(norm(x)), in place.

    Returns x, its norm for what follows (float32 [T, D] both), and the router's choice if there is a router. `update`
    is what the layer before wants added, or None. With `rows`, int64 [R], only these tokens go on after attention: x is
    then new, [R, D], and without any only the cache is written.
    """
    return compose(sys.modules[__name__], x_TD, update_TD, block, places, rows_R)


def layers(x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A whole decoder between embedding and final norm: for each layer x += attention, x += experts or MLP, in place.

    Returns x and the last layer's update, still to be added to it (float32 [T, D] both), and how many distinct experts
    each layer chose (int32 [layers], 0 for a dense one). With `rows`, int64 [R], only these tokens go on after the last
    attention: both are then [R, D], and the last layer's experts see no others; an empty one only writes the cache.
    """
    return compose_layers(sys.modules[__name__], x_TD, stack, places, rows_R)


def route(x_TD: Tensor, router: Matrix, top_k: int, scoring: Scoring, renormalise: bool) -> Choice:
    """Chooses experts by the logits linear(x, router) [T, E]: ids int32 [T, K] in falling order of score, and their
    weights float32 [T, K].

    softmax: probabilities over all experts, the top k of them, divided by their sum if `renormalise`.
    softmax_topk: the top k logits, softmax over those k alone. Equal scores: the lower id first.
    """
    logits_TE = linear(x_TD, router)
    scores = logits_TE.softmax(-1) if scoring == "softmax" else logits_TE
    order = scores.sort(dim=-1, descending=True, stable=True)
    weights, ids = order.values[:, :top_k], order.indices[:, :top_k]
    if scoring == "softmax_topk":
        weights = weights.softmax(-1)
    elif renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids.to(torch.int32).contiguous(), weights.contiguous()


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """SwiGLU's middle: silu(first half) * second half, float32 [T, F]. Source: arXiv 2002.05202."""
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def gated_add_(y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None, to_TD: Tensor | None = None) -> None:
    """y += z * sigmoid(gate) in place; without a gate y += z. to: where the sum goes instead, which may be z; y then
    stays, and on a GPU it may be memory of the host that is registered with the driver."""
    torch.add(y_TD, z_TD if gate_T1 is None else z_TD * gate_T1.sigmoid(), out=y_TD if to_TD is None else to_TD)


def argmax(logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The largest value of each row, float32 [S], and where it stands first, int64 [S]; NaN counts as the largest. to:
    where both go, on a GPU also memory of the host that is registered with the driver."""
    ids = logits_SV.argmax(-1)
    found = logits_SV.gather(1, ids.unsqueeze(1)).squeeze(1), ids
    return found if to is None else (to[0].copy_(found[0]), to[1].copy_(found[1]))


def experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank) -> Tensor:
    """The routed experts of one layer: y[t] = sum_k weights[t,k] * down(silu(gate(x[t])) * up(x[t])), float32 [T, D].

    gate, up and down are the matrices of expert ids[t, k]. Each expert that was chosen is read once for the batch.
    A choice of -1 is no expert of this bank: it adds nothing, and nothing is read for it.
    """
    y_TD = torch.zeros_like(x_TD)
    for expert in sorted(set(ids_TK.flatten().tolist()) - {-1}):
        token, slot = torch.where(ids_TK == expert)
        x = x_TD[token]
        gate, up = linear(x, bank.matrix(expert, "gate")), linear(x, bank.matrix(expert, "up"))
        out = linear(torch.nn.functional.silu(gate) * up, bank.matrix(expert, "down"))
        y_TD.index_add_(0, token, out * weights_TK[token, slot].unsqueeze(1))
    return y_TD
