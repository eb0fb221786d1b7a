"""The plain twin of every op, in pure torch, written to be read.

Shapes are in the names: T tokens, S sequences, D hidden size, N query heads, G key/value heads, d head size,
E experts, K experts per token, F width of an MLP, V vocabulary, R rows and C columns of a matrix, P pages, B page size,
M the longest page table. Activations are float32 [tokens, features]; weights are packed (`packed.py`).
Ops whose name ends in `_` write into their first argument.

Nothing here is fast, and nothing here knows a model, a tier or a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import blocks
from .blocks import cache_rows, ggml, rounding
from .blocks.cache_rows import Rows
from .compressed.twins import fold_entries_, rotate_pairs_
from .decoder_layer import Block, Places, Router, Stack, compose, compose_layers
from .formats import Format
from .packed import TORCH_DTYPES, ExpertBank, Matrix
from .passes.tally import Choice, Tally
from .recipes import SWIGLU, Activation
from .recurrent import delta_gates, delta_rule, gated_norm, key_gates, short_conv, state_space
from .residual.twins import close_streams, fit_streams, gate_streams, stream_weights, take_streams
from .sparse.choose import choose_blocks, choose_entries, choose_keys, place_index_, pool_runs

__all__ = [
    "add_layernorm_", "add_rmsnorm_", "argmax", "attention", "attention_block", "choose_blocks", "choose_entries",
    "choose_keys", "close_streams", "delta_gates", "delta_rule", "dequantize", "embed", "experts", "fit_streams",
    "fold_entries_", "gate_streams", "gated_add_", "gated_norm", "glu", "key_gates", "layernorm", "layers", "linear",
    "linear_by_head", "mul_", "place_index_", "place_qkv_", "pool_runs", "quantize", "repack", "rmsnorm", "rotate_",
    "rotate_pairs_", "route", "scale_", "scale_rows_", "short_conv", "sigmoid_mul_", "softplus_mul_", "state_space",
    "store_rows_", "stream_weights", "take_streams",
]  # fmt: skip


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


def layernorm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias over the last dimension: float32, the shape of
    x."""
    return torch.nn.functional.layer_norm(x_TD, weight_D.shape, weight_D, bias_D, eps)


def add_layernorm_(
    x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, scale: float = 1.0
) -> Tensor:
    """x += scale * y in place, then returns layernorm(x)."""
    x_TD.add_(y_TD, alpha=scale)
    return layernorm(x_TD, weight_D, bias_D, eps)


def linear(x_TC: Tensor, weight: Matrix, bias_R: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: float32 [T, R]."""
    y_TR = x_TC @ dequantize(weight).T
    return y_TR if bias_R is None else y_TR + bias_R


def linear_by_head(x_TNc: Tensor, weight: Matrix) -> Tensor:
    """Each head's own product: y[t, n] = x[t, n] @ weight_n.T, float32 [T, N, R]; weight is [N R, c], one head's rows
    after the other's."""
    N, c = x_TNc.shape[1:]
    return torch.einsum("tnc,nrc->tnr", x_TNc, dequantize(weight).view(N, -1, c))


def place_qkv_(
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
    """Makes queries, keys and values of a fused projection ready for attention: norms, clips and rotates them in place,
    and stores keys and values in one layer's cache.

    qkv float32 [T, N d + G d + G v]: heads of queries, keys, values. The norm weights are float32 [d] (every head on
    its own) or [N d] and [G d] (all heads as one row); both or neither; v_norm [v], of values. shared: keys serve as
    values, as they are before their norm; qkv is then [T, N d + G d], and what it holds of keys afterwards is of no
    use. `clip` bounds all values to +- clip; v_scale: what values are multiplied by at last. cos and
    sin are float32 [positions, r]; positions int32 [T]. The caches are float32, bfloat16 or q8_0 [P, G, B, d] and
    [P, G, B, v]; slots int64 [T]: slot = page * B + place in the page.
    """
    (_, G, _, d), v_dim = k_PGBd.shape, v_PGBv.shape[3]
    moved = qkv_TR.shape[1] - (0 if shared else G * v_dim)  # queries and keys
    qk = qkv_TR[:, :moved].unflatten(1, (-1, d))
    q, k = qk[:, :-G], qk[:, -G:]
    v = k.clone() if shared else qkv_TR[:, moved:].unflatten(1, (G, v_dim))
    for heads, weight in ((q, q_norm), (k, k_norm), (v, v_norm)):
        if weight is not None:
            rows = heads.reshape(len(heads), -1, len(weight))
            heads.copy_(rmsnorm(rows, weight, eps).view(heads.shape))
    if clip is not None:
        for heads in (q, k, v):
            heads.clamp_(-clip, clip)
    v.mul_(v_scale)
    rotate_(qk, cos_Pr, sin_Pr, positions_T)
    for rows_PGBd, values in ((k_PGBd, k), (v_PGBv, v)):
        store_rows_(rows_PGBd, slots_T, values)


def store_rows_(rows_PGBd: Rows, slots_T: Tensor, values_TGd: Tensor) -> None:
    """Writes float32 rows [T, G, d] into the slots, int64 [T], of a cache as of `place_qkv_`."""
    cache_rows.store_(rows_PGBd, slots_T, values_TGd)


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
    """Causal grouped-query attention of new tokens over the paged cache: float32 [T, N, v], v the width of a value.

    Sequence s owns the query rows starts[s] .. starts[s+1]; its last query sits at position contexts[s] - 1, and its
    keys at positions 0 .. contexts[s] - 1 lie in the pages tables[s, 0], tables[s, 1], ... (int32, all three).
    The keys of the new tokens are in the cache already. Query head n reads key/value head n // (N / G).
    Values may be the first v numbers of each key, as a view [P, G, B, v] of the keys (latent attention).
    window: how many tokens a query sees, itself included; None: all before it. sinks, float32 [N]: a score more for
    each head, which has no value. chunk: a query at position p sees no keys before p - p % chunk.
    """
    out = q_TNd.new_empty(*q_TNd.shape[:2], v_PGBd.shape[3])
    group = q_TNd.shape[1] // k_PGBd.shape[1]
    for s, context in enumerate(contexts_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        pages = tables_SM[s, : -(-context // k_PGBd.shape[2])].long()
        caches = (cache_rows.widen(cache[pages]) for cache in (k_PGBd, v_PGBd))
        k, v = (wide.transpose(0, 1).flatten(1, 2)[:, :context] for wide in caches)
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        q = q_TNd[first:last].transpose(0, 1)
        scores = q @ k.transpose(1, 2) * scale
        places = torch.arange(context, device=q.device)
        at = places[first - last :].unsqueeze(1)
        hidden = places > at if window is None else (places > at) | (places <= at - window)
        if chunk is not None:
            hidden = hidden | (places < at - at % chunk)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks_N is not None:
            scores = torch.cat([scores, sinks_N.view(-1, 1, 1).expand(-1, last - first, 1)], dim=2)
        out[first:last] = (scores.softmax(-1)[..., :context] @ v).transpose(0, 1)
    return out


def attention_block(
    x_TD: Tensor, update_TD: Tensor | None, block: Block, places: Places, rows_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Choice | None]:
    """A layer before its experts: x += residual_scale * update, x += residual_scale * attention(norm(x)), in place.

    Returns x, its norm for what follows (float32 [T, D] both), and the router's choice if there is a router. Where the
    layer ends with its mixer, in place of the norm what is to be added, which x then lacks. `update`
    is what the layer before wants added, or None. With `rows`, int64 [R], only these tokens go on after attention: x is
    then new, [R, D], and without any only the cache is written.
    """
    return compose(sys.modules[__name__], x_TD, update_TD, block, places, rows_R)


def layers(
    x_TD: Tensor, stack: Stack, places: Places, rows_R: Tensor | None = None, tally: Tally | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole decoder between embedding and final norm: for each layer x += attention, x += experts or MLP, in place.

    Returns x and the last layer's update, still to be added to it (float32 [T, D] both), and how many distinct experts
    each layer chose (int32 [layers], 0 for a dense one). With `rows`, int64 [R], only these tokens go on after the last
    attention: both are then [R, D], and the last layer's experts see no others; an empty one only writes the cache.
    tally: takes in who chose which expert.
    """
    return compose_layers(sys.modules[__name__], x_TD, stack, places, rows_R, tally)


def route(x_TD: Tensor, router: Router, ids_TK: Tensor | None = None) -> Choice:
    """Chooses experts by the logits linear(x, router.matrix) + router.bias [T, E]: ids int32 [T, K] in falling order of
    the choice, and their weights float32 [T, K].

    softmax: scores are probabilities over all experts. sigmoid: each expert's own. sqrt_softplus: the root of
    log(1 + e^logit), each expert's own. The top k of score + choice bias are
    chosen; their weights are the scores, divided by their sum if `renormalise`. With groups, a token chooses among the
    experts of the `top_groups` groups alone whose best biased score, or the sum of whose two best, is largest.
    softmax_topk: the top k logits, softmax over those k alone. sigmoid_topk: the top k logits, of each its sigmoid.
    sparsemixer: see `sparse_mix`. Equal scores: the lower id first. A token's experts differ from each other, even
    where scores are no numbers. All weights are multiplied by `scale`, and each by its expert's factor, if there are
    such. ids: these experts were chosen before, and weights alone are asked for; not with sparsemixer. Source of bias
    and groups: DeepSeek-V3 (arXiv 2412.19437, 2.1.2).
    """
    logits_TE = linear(x_TD, router.matrix, router.bias_E)
    if router.scoring == "sparsemixer":
        return sparse_mix(logits_TE, router)
    scores = _SCORES[router.scoring](logits_TE)
    ids = _chosen(scores, router) if ids_TK is None else ids_TK.long()
    weights = scores.gather(1, ids)
    if router.scoring == "softmax_topk":
        weights = weights.softmax(-1)
    elif router.scoring == "sigmoid_topk":
        weights = weights.sigmoid()
    elif router.renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    weights = weights * router.scale
    if router.factors_E is not None:
        weights = weights * router.factors_E[ids]
    return ids.to(torch.int32).contiguous(), weights


def _chosen(scores_TE: Tensor, router: Router) -> Tensor:
    """The top k of biased scores, int64 [T, K]."""
    biased = scores_TE if router.choice_bias_E is None else scores_TE + router.choice_bias_E
    biased = biased if router.groups == 1 else _within_groups(biased, router)
    return biased.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "softmax_topk": torch.clone,
    "sigmoid_topk": torch.clone,
    "sqrt_softplus": lambda logits_TE: torch.nn.functional.softplus(logits_TE).sqrt(),
}


def sparse_mix(logits_TE: Tensor, router: Router) -> Choice:
    """The largest logit, then the largest of the others, and so on. The weight of each is its share in the softmax over
    what was left then and lay near it: experts whose distance from it, in parts of the larger one's size, is above
    2 * jitter stay out. Source: GRIN (arXiv 2409.12136), as Phi-3.5-MoE computes it when it does not learn."""
    ids = logits_TE.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_k]
    left, weights = logits_TE.clone(), []
    for chosen in ids.split(1, dim=1):
        best = logits_TE.gather(1, chosen)
        far = (best - logits_TE) / logits_TE.abs().clamp(min=best) > 2 * router.jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(1, chosen))
        left = left.scatter(1, chosen, float("-inf"))
    return ids.to(torch.int32).contiguous(), torch.cat(weights, dim=1) * router.scale


def _within_groups(scores_TE: Tensor, router: Router) -> Tensor:
    """The scores of a token's best groups; -inf for all others."""
    by_group = scores_TE.view(len(scores_TE), router.groups, -1)
    best = by_group.amax(-1) if router.group_score == "max" else by_group.topk(2).values.sum(-1)
    chosen = best.sort(dim=-1, descending=True, stable=True).indices[:, : router.top_groups]
    closed = torch.ones_like(best, dtype=torch.bool).scatter_(1, chosen, False)
    return by_group.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)


def glu(gate_up_T2F: Tensor, activation: Activation = SWIGLU) -> Tensor:
    """A gated MLP's middle of gates (first half) and ups (second half), or of ups alone: float32 [T, F]; see
    `Activation`."""
    if not activation.gated:
        return gate_up_T2F.relu().square()
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    up = up.clamp(-activation.limit, activation.limit)
    gate = gate if activation.late else gate.clamp(max=activation.limit)
    curved = gate * (1 + activation.cubic * gate * gate) if activation.cubic else gate
    opened = _bent(gate, activation.bend) * torch.sigmoid(activation.alpha * curved)
    up = _bent(up, activation.bend_up)
    return (up + activation.offset) * (opened.clamp(max=activation.limit) if activation.late else opened)


def _bent(x: Tensor, bound: float) -> Tensor:
    """Within +-bound, on the curve of a tanh; 0: as it is."""
    return bound * (x / bound).tanh() if bound else x


def gated_add_(y_TD: Tensor, z_TD: Tensor, gate_T1: Tensor | None = None, to_TD: Tensor | None = None) -> None:
    """y += z * sigmoid(gate) in place; without a gate y += z. to: where the sum goes instead, which may be z; y then
    stays, and on a GPU it may be memory of the host that is registered with the driver."""
    torch.add(y_TD, z_TD if gate_T1 is None else z_TD * gate_T1.sigmoid(), out=y_TD if to_TD is None else to_TD)


def sigmoid_mul_(y_TC: Tensor, gate_TG: Tensor) -> None:
    """y *= sigmoid(gate) in place, float32 [T, C] and [T, G]: a gate is that of C / G values next to each other."""
    y_TC.view(*gate_TG.shape, -1).mul_(gate_TG.sigmoid().unsqueeze(2))


def softplus_mul_(y_TC: Tensor, gate_TG: Tensor) -> None:
    """y *= log(1 + e^gate), else as `sigmoid_mul_`."""
    y_TC.view(*gate_TG.shape, -1).mul_(torch.nn.functional.softplus(gate_TG).unsqueeze(2))


def mul_(y_TC: Tensor, by_TC: Tensor) -> None:
    """y *= by in place, float32 [T, C] both, which may be columns of wider rows."""
    y_TC.mul_(by_TC)


def scale_(x_TC: Tensor, by_1: Tensor) -> None:
    """x *= by in place: float32 [T, C], and float32 [1]."""
    x_TC.mul_(by_1)


def scale_rows_(x_TNd: Tensor, by_P: Tensor, positions_T: Tensor) -> None:
    """x[t] *= by[positions[t]] in place, on a view of float32 [T, N, d]; by float32 [P]."""
    x_TNd.mul_(by_P[positions_T.long()].view(-1, 1, 1))


def argmax(logits_SV: Tensor, to: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The largest value of each row, float32 [S], and where it stands first, int64 [S]; NaN counts as the largest. to:
    where both go, on a GPU also memory of the host that is registered with the driver."""
    ids = logits_SV.argmax(-1)
    found = logits_SV.gather(1, ids.unsqueeze(1)).squeeze(1), ids
    return found if to is None else (to[0].copy_(found[0]), to[1].copy_(found[1]))


def experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank, local_E: Tensor | None = None
) -> Tensor:
    """The routed experts of one layer: y[t] = sum_k weights[t,k] * (down(glu(gate(x[t]), up(x[t])))), float32 [T, D].

    gate (where the layout has one), up and down are the matrices of expert ids[t, k], with biases where the layout has
    them. Where the layout says that weights are of the input, the expert takes weights[t, k] * x[t], and what it gives
    counts as it is. Each expert that was chosen is read once for the batch. A choice of -1 is no expert of this bank:
    it adds nothing, and nothing is read for it. local: int32 [E], what number of the bank an id stands for, or -1;
    without one ids are these numbers.
    """
    if local_E is not None:
        ids_TK = local_E[ids_TK.long()]
    y_TD = torch.zeros_like(x_TD)
    for expert in sorted(set(ids_TK.flatten().tolist()) - {-1}):
        token, slot = torch.where(ids_TK == expert)
        weight_N1 = weights_TK[token, slot].unsqueeze(1)
        taken, given = (weight_N1, 1.0) if bank.layout.weighs_input else (1.0, weight_N1)
        x_ND, parts = x_TD[token] * taken, bank.layout.parts[:-1]
        products = [linear(x_ND, bank.matrix(expert, part), bank.bias(expert, part)) for part in parts]
        middle = glu(torch.cat(products, dim=1), bank.layout.activation)
        out = linear(middle, bank.matrix(expert, "down"), bank.bias(expert, "down"))
        y_TD.index_add_(0, token, out * given)
    return y_TD
