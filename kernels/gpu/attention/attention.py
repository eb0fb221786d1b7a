"""Causal attention over the paged cache: which kernel.

A batch in which every sequence has one new token is decode; anything else goes to `prefill.py`. Latents, where values
are the first numbers of keys and all heads read the same ones, go to `latent.py`.
"""

from __future__ import annotations

from torch import Tensor

from ...blocks.cache_rows import Rows
from .asked import asked
from .decode import decode
from .latent import latent
from .prefill import prefill


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
    it = asked(q_TNd, k_PGBd, v_PGBd, tables_SM, starts_S1, contexts_S, scale, window, sinks_N, chunk)
    if it.is_latent:
        latent(it)
    elif it.T == it.S:
        decode(it)
    else:
        prefill(it)
    return it.out
