"""Cases of the ops around attention: what happens to queries, keys and values, attention, and the block of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from .. import Ops
from ..decoder_layer import AttentionBlock, Block, Choice, FeedBlock, Places, Router, compose
from ..formats import FORMATS, Format
from ..mixers import ConvBlock, DeltaBlock, LatentBlock, SpaceBlock
from ..packed import Stacked
from .case import BASIC, Case, Inputs, Source, U, normal, sum_error


def fused(g: Generator, T: int, N: int, d: int) -> tuple[Tensor, Tensor]:
    """A buffer [T, 3N, d] and a view of its middle third: heads as they lie in the output of a fused qkv projection."""
    buffer = normal(g, T, 3 * N, d)
    return buffer, buffer[:, N : 2 * N]


def paged(
    g: Generator, contexts: list[int], G: int, B: int, d: int, dtype: torch.dtype, tables: Tensor | None = None,
    v_dim: int | None = None,
) -> Inputs:  # fmt: skip
    """Caches with every sequence's pages scattered, or as `tables` says; what no sequence has written is NaN. v_dim:
    the width of a value, where it is not that of a key."""
    longest = max(-(-c // B) for c in contexts)
    S = len(contexts)
    if tables is None:
        tables = torch.randperm(S * longest + 1, generator=g)[: S * longest].view(S, longest).to(torch.int32)
    k = torch.full((S * longest + 1, G, B, d), float("nan"), dtype=dtype)
    v = torch.full((S * longest + 1, G, B, v_dim or d), float("nan"), dtype=dtype)
    for s, context in enumerate(contexts):
        place = torch.arange(context)
        pages = tables[s].long()[place // B]
        k[pages, :, place % B] = normal(g, context, G, d).to(dtype)
        v[pages, :, place % B] = normal(g, context, G, v_dim or d).to(dtype)
    return {"k": k, "v": v, "tables": tables, "contexts": torch.tensor(contexts, dtype=torch.int32)}


def attention_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """A score is off by at most e = error of a sum of d products |q||k|, weights by 2 e of themselves, sums by n u.
    Where queries and probabilities are rounded, by r of themselves, e grows by r |q||k| and the sum is off by r."""
    d, context = i["q"].shape[-1], int(i["contexts"].max())
    keys, values = i["k"].float().nan_to_num(), i["v"].float().nan_to_num()
    rounded = i.get("attention", 0.0)
    score = (sum_error(d) + rounded) * i["q"].norm(dim=-1).max() * keys.norm(dim=-1).max() * i["scale"]
    return [float((2 * score + sum_error(context) + rounded + 2**-21) * values.abs().max())]


def place_qkv_case(
    T: int, N: int, G: int, d: int, r: int, B: int, norm: str, clip: float | None, t: torch.dtype,
    values: str = "", v: int | None = None, v_scale: float = 1.0,
) -> Case:  # fmt: skip
    """values: "normed", "shared" with keys, or both; v wide where it is said."""
    shared, wide = "shared" in values, v or d

    def build(g: Generator, source: Source) -> Inputs:
        sizes = {"": (), "head": (d, d), "row": (N * d, G * d)}[norm]
        angle = normal(g, 50, r)
        return {
            "qkv": normal(g, T, (N + G) * d + (0 if shared else G * wide)) * 3,
            "k": torch.zeros(-(-T // B) + 2, G, B, d, dtype=t),
            "v": torch.zeros(-(-T // B) + 2, G, B, wide, dtype=t),
            "slots": torch.randperm((-(-T // B) + 2) * B, generator=g)[:T],
            "tables": (angle.cos(), angle.sin(), torch.randint(50, (T,), generator=g, dtype=torch.int32)),
            "norms": [normal(g, size) for size in sizes] or [None, None],
            "v_norm": normal(g, wide) if "normed" in values else None,
        }

    def call(ops: Ops, i: Inputs) -> list[Tensor]:
        qkv, k, v = i["qkv"].clone(), i["k"].clone(), i["v"].clone()
        (cos, sin, at), (q_norm, k_norm) = i["tables"], i["norms"]
        more = i["v_norm"], shared, v_scale
        ops.place_qkv_(qkv, k, v, i["slots"], cos, sin, at, q_norm, k_norm, 1e-6, clip, *more)
        turned, rest = qkv[:, : (N if shared else N + G) * d], qkv[:, (N + G) * d :]
        return [turned.unflatten(1, (-1, d)), k, v, *([] if shared else [rest.unflatten(1, (G, wide))])]

    def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
        """A norm as `relative`, a rotation 4 u of the larger of a pair; a stored key may fall to the next bf16."""
        lost = ((max(N, G) * d if norm == "row" else d) / 4 + 24 if norm else 0) + 6
        size, *rest = (x.abs().amax(-1, keepdim=True) * lost * U + x * 0 for x in (out[0], *out[3:]))
        key, value = (
            c.float().abs().amax(-1, keepdim=True) * lost * U
            + (c.float().abs() * 2.0**-7 if t == torch.bfloat16 else c * 0)
            for c in out[1:3]
        )
        return [size, key, *([value, *rest] if "normed" in values else [0.0] * (1 + len(rest)))]

    kind = f"{norm or 'no'} norm{'' if clip is None else ' clipped'}"
    kind += f"{values and f' values {values}'}{f' {v} wide' if v else ''}{f' by {v_scale}' if v_scale != 1 else ''}"
    name = f"{str(t)[6:]} {T}x{N}+2x{G}x{d} rotating {2 * r} page {B} {kind}"
    return Case(op="place_qkv_", name=name, build=build, call=call, allowed=allowed)


def place_qkv_cases() -> Iterator[Case]:
    """One projection's heads: with and without norms, clipping, a rotated part; the whole buffer and cache compared."""

    case = place_qkv_case
    f32, bf16 = torch.float32, torch.bfloat16
    for t in (f32, bf16):
        yield case(1, 1, 1, 16, 8, 16, "", None, t)
        yield case(1, 32, 4, 128, 64, 32, "head", None, t)
        yield case(3, 3, 3, 80, 20, 7, "head", 1.5, t)
        yield case(5, 4, 2, 24, 12, 16, "row", 2.0, t)
        yield case(17, 6, 2, 128, 64, 32, "row", None, t)
        yield case(70, 8, 4, 64, 32, 32, "head", None, t)
        yield case(1, 64, 8, 192, 32, 32, "", None, t, v=128, v_scale=0.707)
        yield case(9, 6, 3, 40, 14, 16, "head", 2.0, t, v=24, v_scale=1.5)
        yield case(5, 4, 2, 24, 10, 7, "row", None, t, "normed", v=36)


def attention_cases() -> Iterator[Case]:
    def case(N: int, G: int, d: int, B: int, new: list[int], contexts: list[int], t: torch.dtype, bench: bool) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
            q = fused(g, sum(new), N, d)[1]
            return {**paged(g, contexts, G, B, d, t), "q": q, "starts": starts, "scale": 1 / math.sqrt(d)}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            batch = i["tables"], i["starts"], i["contexts"]
            return [ops.attention(i["q"], i["k"], i["v"], *batch, i["scale"])]

        pairs = sum(n * c - n * (n - 1) // 2 for n, c in zip(new, contexts, strict=True))
        return Case(
            op="attention",
            name=f"{str(t)[6:]} {N}/{G} heads d{d} page {B}: new {new} of {contexts}",
            build=build,
            call=call,
            allowed=attention_error,
            bytes=2 * sum(contexts) * G * d * t.itemsize,
            flops=4 * pairs * N * d,
            bench=bench,
        )

    f32, bf16 = torch.float32, torch.bfloat16
    for N, G, d, B in ((1, 1, 16, 16), (4, 4, 24, 16), (8, 2, 64, 32), (7, 1, 80, 16), (6, 2, 128, 48), (3, 3, 5, 7)):
        for t in (f32, bf16):
            yield case(N, G, d, B, [3, 1, 9], [3, 70, 601], t, bench=False)
    yield case(2, 1, 64, 16, [1], [1700], bf16, bench=False)
    yield case(6, 2, 80, 32, [1, 1, 1], [1, 70, 1601], bf16, bench=False)
    yield case(4, 4, 24, 7, [1, 1], [33, 300], f32, bench=False)
    yield case(4, 2, 32, 16, [150, 1], [150, 1], f32, bench=False)
    yield case(70, 1, 16, 16, [2], [40], f32, bench=False)
    for context in (1024, 8192):
        yield case(16, 16, 128, 16, [1], [context], bf16, bench=True)
        yield case(32, 4, 128, 16, [1] * 4, [context] * 4, bf16, bench=True)
    yield case(32, 4, 128, 32, [1], [32768], bf16, bench=True)
    yield case(16, 16, 128, 16, [512], [512], bf16, bench=True)
    yield case(32, 4, 128, 16, [512], [4096], bf16, bench=True)


def places_of(new: list[int], old: list[int], tables_SM: Tensor, page: int) -> Places:
    """Sequences with so many new tokens after so many old ones, in the pages of `tables`."""
    positions = torch.cat([torch.arange(o, o + n) for n, o in zip(new, old, strict=True)])
    sequence = torch.arange(len(new)).repeat_interleave(torch.tensor(new))
    return Places(
        positions_T=positions.int(),
        slots_T=tables_SM[sequence, positions // page].long() * page + positions % page,
        tables_SM=tables_SM,
        starts_S1=torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32),
        contexts_S=torch.tensor(new, dtype=torch.int32) + torch.tensor(old, dtype=torch.int32),
    )


EXPERTS, TOP_K = 12, 3
N, G, HEAD, PAGE = 6, 2, 32, 16


def cache_of(g: Generator, contexts: list[int]) -> Inputs:
    return paged(g, contexts, G, PAGE, HEAD, torch.bfloat16)


def random_block(g: Generator, source: Source, form: Format, D: int, cache: Inputs, kind: str) -> AttentionBlock:
    """An attention block of 6 and 2 heads. first: biases, no router; few rows: norms over all heads; else clipped."""
    d, first, wide = HEAD, kind == "first", kind == "few rows"
    angle = normal(g, int(cache["contexts"].max()), d // 2)
    router = Router(matrix=source.matrix(FORMATS["f32"], EXPERTS, D), top_k=TOP_K, scoring="softmax", renormalise=True)
    return AttentionBlock(
        heads=N,
        pre_norm=normal(g, D),
        qkv=Stacked((source.matrix(form, (N + 2 * G) * d, D),)),
        qkv_bias=normal(g, (N + 2 * G) * d) if first else None,
        q_norm=normal(g, N * d if wide else d),
        k_norm=normal(g, G * d if wide else d),
        o=source.matrix(form, D, N * d),
        o_bias=normal(g, D) if first else None,
        post_norm=normal(g, D),
        k_PGBd=cache["k"],
        v_PGBd=cache["v"],
        cos_Pr=angle.cos(),
        sin_Pr=angle.sin(),
        eps=1e-6,
        clip=None if kind else 2.5,
        scale=1 / math.sqrt(d),
        residual_scale=0.7,
        router=None if first else router,
    )


def rows_of(kind: str, tokens: int) -> Tensor | None:
    """The tokens that go on: the last one, none, or all of them."""
    return {"few rows": torch.tensor([tokens - 1]), "no rows": torch.tensor([], dtype=torch.int64)}.get(kind)


def block_inputs(
    g: Generator, source: Source, form: Format, D: int, new: list[int], old: list[int], kind: str
) -> Inputs:
    """first: nothing to add either."""
    T = sum(new)
    cache = cache_of(g, [n + o for n, o in zip(new, old, strict=True)])
    return {"x": normal(g, T, D), "update": None if kind == "first" else normal(g, T, D), "rows": rows_of(kind, T),
            "block": random_block(g, source, form, D, cache, kind),
            "places": places_of(new, old, cache["tables"], PAGE)}  # fmt: skip


CACHES: dict[type[Block], tuple[str, ...]] = {
    AttentionBlock: ("k_PGBd", "v_PGBd"),
    LatentBlock: ("rows_P1Bl",),
    DeltaBlock: ("inputs_LCw", "state_LHkv"),
    ConvBlock: ("inputs_LCw",),
    SpaceBlock: ("inputs_LCw", "state_LHkv"),
    FeedBlock: (),
}  # fields that a block writes into


def own_cache(block: Block) -> Block:
    """The block with a copy of its cache, to be written into."""
    return replace(block, **{name: getattr(block, name).clone() for name in CACHES[type(block)]}, native={})


def kept(block: Block) -> list[Tensor]:
    """What the block's cache holds, without what nobody has written."""
    return [getattr(block, name).nan_to_num() for name in CACHES[type(block)]]


def block_difference(ops: Ops, i: Inputs) -> list[Tensor]:
    """All that the block gives and changes, less what the ops that it stands for do, of the same backend."""

    def run(attend: Callable[..., tuple[Tensor, Tensor, Choice | None]]) -> list[Tensor]:
        x, block = i["x"].clone(), own_cache(i["block"])
        *out, choice = attend(x, i["update"], block, i["places"], i["rows"])
        return [*out, *(choice or ()), x, *kept(block)]

    return [a - b for a, b in zip(run(ops.attention_block), run(partial(compose, ops)), strict=True)]


def attention_block_cases() -> Iterator[Case]:
    """The same bits as from its parts, so the difference is zero."""

    def case(form: Format, D: int, new: list[int], old: list[int], kind: str) -> Case:
        return Case(
            op="attention_block",
            name=f"{form.name} {D} new {new} after {old}{' ' + kind if kind else ''}",
            build=lambda g, source: block_inputs(g, source, form, D, new, old, kind),
            call=block_difference,
        )

    for form in BASIC:
        yield case(form, 96, [1], [40], "")
        yield case(form, 160, [3, 1], [0, 70], "first")
        yield case(form, 96, [37, 5], [3, 0], "few rows")
    yield case(FORMATS["q4_0"], 96, [9], [20], "no rows")
