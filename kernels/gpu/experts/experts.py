"""The routed experts of one layer, from the stored blocks: y[t] = sum_k weight[t, k] * down(silu(gate(x)) * up(x)).

Up to 16 tokens (`few_tokens.py`, and `one_token.py` for one in formats that it is not for): two launches that read each
chosen expert once. More (`many_tokens.py`): pairs grouped by expert, tiles of tokens on tensor cores, then the sum over
k. The order of every sum is fixed, so that a batch gives the same bits every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...packed import ExpertBank
from ...scratch import GPU_EXPERT_BYTES
from .. import launch
from .blocks import Blocks, blocks_of
from .few_tokens import experts_few, takes_few
from .many_tokens import experts_many
from .one_token import experts_one


def experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, bank: ExpertBank, local_E: Tensor | None = None
) -> Tensor:
    (T, D), (_T, K), layout = x_TD.shape, ids_TK.shape, bank.layout
    assert layout.hidden == D, f"{D} values, {layout.hidden} columns"
    blocks = blocks_of(bank)
    launch.check(x_TD, launch.F32, T, D)
    launch.check(ids_TK, launch.I32, T, K)
    launch.check(weights_TK, launch.F32, T, K)
    if local_E is not None:
        launch.check(local_E, launch.I32, len(local_E))
        if layout.weighs_input or (T > 1 and not takes_few(T, blocks)):
            ids_TK, local_E = local_E[ids_TK.long()], None
    if not layout.weighs_input:
        return _experts(x_TD, ids_TK, weights_TK, blocks, local_E)
    # A pair of a token and an expert is a token of its own, which counts as it is.
    x_PD = (x_TD.unsqueeze(1) * weights_TK.unsqueeze(2)).view(T * K, D)
    y_PD = _experts(x_PD, ids_TK.view(T * K, 1), torch.ones_like(weights_TK).view(T * K, 1), blocks)
    return y_PD if K == 1 else y_PD.view(T, K, D).sum(1)


def _experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, blocks: Blocks, local_E: Tensor | None = None) -> Tensor:
    """With weights of what experts give."""
    (T, D), K = x_TD.shape, ids_TK.shape[1]
    out = torch.empty_like(x_TD)
    if takes_few(T, blocks):
        experts_few(x_TD, ids_TK, weights_TK, blocks, out, local_E)
        return out
    if T == 1:
        experts_one(x_TD, ids_TK, weights_TK, blocks, out, local_E)
        return out
    chunk = max(2, GPU_EXPERT_BYTES // (4 * K * D))
    for first in range(0, T, chunk):
        here = slice(first, first + chunk)
        experts_many(x_TD[here], ids_TK[here], weights_TK[here], blocks, out[here])
    return out
