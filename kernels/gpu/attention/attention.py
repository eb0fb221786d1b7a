"""Causal attention over the paged cache: which kernel.

A batch in which every sequence has one new token is decode; anything else goes to `prefill.py`. Latents, where values
are the first numbers of keys and all heads read the same ones, go to `latent.py`.
"""

from __future__ import annotations

from torch import Tensor

from ...blocks.cache_rows import Rows
from ...decoder_layer import Pages, Places
from .. import launch
from .asked import asked
from .decode import decode
from .decode_placed import Place, decode_placed
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


def place_and_attend(
    qkv_TR: Tensor,
    k_PGBd: Rows,
    v_PGBv: Rows,
    pages: Pages,
    places: Places,
    place: Place,
    scale: float,
    window: int | None,
    sinks_N: Tensor | None,
    chunk: int | None,
) -> Tensor:
    """`place_qkv_`, then `attention`, of one new token of each sequence, in one launch: float32 [T, N, v]. Its twin is
    these two, but that queries, keys and values in qkv stay as they are."""
    (T, R), (_P, G, _page, d), v = qkv_TR.shape, k_PGBd.shape, v_PGBv.shape[3]
    N = (R - G * v) // d - G
    assert (N + G) * d + G * v == R, f"{R} values in heads of {d} and {v}"
    assert 2 * place.cos_Pr.shape[1] <= d, f"{place.cos_Pr.shape[1]} pairs in {d} values"
    launch.check(qkv_TR, launch.F32, T, R)
    for table in (place.cos_Pr, place.sin_Pr):
        launch.check(table, launch.F32, *place.cos_Pr.shape)
    launch.check(place.positions_T, launch.I32, T)
    launch.check(place.slots_T, launch.I64, T)
    for norm in place.norms or ():
        launch.check(norm, launch.F32, d)
    q_TNd, batch = qkv_TR[:, : N * d].unflatten(1, (N, d)), (pages.tables_SM, places.starts_S1, places.contexts_S)
    it = asked(q_TNd, k_PGBd, v_PGBv, *batch, scale, window, sinks_N, chunk)
    assert it.T == it.S, f"{it.T} tokens of {it.S} sequences"
    decode_placed(it, place)
    return it.out
