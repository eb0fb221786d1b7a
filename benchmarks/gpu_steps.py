"""Launches that stand for several ops in a step of few tokens, on the shapes of Qwen3-30B-A3B and a router of
DeepSeek-V3's, for `gpu_compile.py`. Tensors have no memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from gpu_families import ints, meta

from headrace.kernels import FORMATS, ExpertLayout, gpu
from headrace.kernels.blocks import cache_rows
from headrace.kernels.decoder_layer import Pages, Places, Router
from headrace.kernels.formats import KV_FORMATS
from headrace.kernels.gpu.attention.attention import place_and_attend
from headrace.kernels.gpu.attention.decode_placed import Place
from headrace.kernels.gpu.normed.linear import norm_linear
from headrace.kernels.gpu.normed.route import norm_route
from headrace.kernels.gpu.normed.stream import Stream
from headrace.kernels.packed import ExpertBank, Matrix, Stacked

CORE = ("placed decode bf16", "placed decode q8_0", "placed decode window sinks bf16", "normed q4_0 1", "normed bf16 1",
        "normed route", "normed route groups", "local experts q4_0 1")  # fmt: skip
EACH = ("placed decode bf16", "normed q4_0 1", "normed route groups")
D, WIDTH, EXPERTS, TOP_K, HEADS, GROUPS, HEAD = 2048, 768, 128, 8, 32, 4, 128


def calls() -> dict[str, Any]:
    """By a label that says on which shapes: one token, or one of each of two sequences."""
    stream = Stream(meta(1, D), meta(1, D), 1.0, meta(D), 1e-6)
    router = Router(matrix=matrix("f32", EXPERTS, D), top_k=TOP_K, scoring="softmax", renormalise=True)
    groups = Router(
        matrix=matrix("f32", 256, 7168), top_k=8, scoring="sigmoid", renormalise=True, choice_bias_E=meta(256),
        groups=8, top_groups=4, scale=2.5,
    )  # fmt: skip
    wide = Stream(meta(1, 7168), meta(1, 7168), 1.0, meta(7168), 1e-6)
    qkv = (HEADS + 2 * GROUPS) * HEAD
    return {
        **{f"placed decode {name}": partial(attend, name) for name in ("bf16", "q8_0", "f32")},
        "placed decode window sinks bf16": partial(attend, "bf16", 64, 8, 64, 128),
        **{
            f"normed {name} 1": lambda name=name: norm_linear(stream, Stacked((matrix(name, qkv, D),)), None)
            for name in ("bf16", "q8_0", "q4_0", "q6_k")
        },
        "normed route": lambda: norm_route(stream, router),
        "normed route groups": lambda: norm_route(wide, groups),
        "local experts q4_0 1": mix,
    }


def matrix(name: str, rows: int, cols: int) -> Matrix:
    return Matrix.empty(FORMATS[name], rows, cols, "meta")


def attend(
    name: str, heads: int = HEADS, groups: int = GROUPS, size: int = HEAD, window: int | None = None
) -> torch.Tensor:
    """A token of each of two sequences, its heads made ready; over a window with sinks, if there is one."""
    k = cache_rows.empty(KV_FORMATS[name], 64, groups, 32, size, torch.device("meta"))
    slots, tables, positions = meta(2, dtype=torch.int64), ints(2, 1024), ints(2)
    places = Places(positions_T=positions, slots_T=slots, tables_SM=tables, starts_S1=ints(3), contexts_S=ints(2))
    norms = (meta(size), meta(size)) if window is None else None
    place = Place(slots, meta(99, size // 2), meta(99, size // 2), positions, norms, 1e-6, None, 1.0)
    qkv, sinks = meta(2, (heads + 2 * groups) * size), None if window is None else meta(heads)
    return place_and_attend(qkv, k, k.clone(), Pages(slots, tables), places, place, 0.1, window, sinks, None)


def mix() -> torch.Tensor:
    """Half of the experts are here."""
    layout = ExpertLayout(format=FORMATS["q4_0"], hidden=D, width=WIDTH)
    bank = ExpertBank.empty(layout, EXPERTS // 2, "meta")
    return gpu.experts(meta(1, D), ints(1, TOP_K), meta(1, TOP_K), bank, ints(EXPERTS))
