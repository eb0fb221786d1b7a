"""Cases of the ops around attention: what happens to queries, keys and values, attention, and the block of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from .. import Ops
from ..blocks import cache_rows
from ..blocks.cache_rows import Q8Rows, Rows
from ..decoder_layer import AttentionBlock, Block, FeedBlock, Places, Router, compose
from ..formats import FORMATS, KV_BF16, KV_F32, KV_Q8_0, Format, KVFormat
from ..mixers import ConvBlock, DeltaBlock, LatentBlock, SpaceBlock
from ..packed import Stacked
from ..passes.tally import Choice
from .case import BASIC, Case, Inputs, Source, U, normal, starts_of, sum_error


def fused(g: Generator, T: int, N: int, d: int) -> tuple[Tensor, Tensor]:
    """A buffer [T, 3N, d] and a view of its middle third: heads as they lie in the output of a fused qkv projection."""
    buffer = normal(g, T, 3 * N, d)
    return buffer, buffer[:, N : 2 * N]


LONG_NAMES = {"f32": "float32", "bf16": "bfloat16", "q8_0": "q8_0"}  # of a cache's format


def unwritten(form: KVFormat, P: int, G: int, B: int, d: int) -> Rows:
    """Rows that are NaN."""
    rows = cache_rows.empty(form, P, G, B, d)
    cache_rows.memory(rows).fill_(255 if isinstance(rows, Q8Rows) else float("nan"))
    return rows


def paged(
    g: Generator, contexts: list[int], G: int, B: int, d: int, form: KVFormat, tables: Tensor | None = None,
    v_dim: int | None = None,
) -> Inputs:  # fmt: skip
    """Caches with every sequence's pages scattered, or as `tables` says; what no sequence has written is NaN. v_dim:
    the width of a value, where it is not that of a key."""
    longest = max(-(-c // B) for c in contexts)
    S = len(contexts)
    if tables is None:
        tables = torch.randperm(S * longest + 1, generator=g)[: S * longest].view(S, longest).to(torch.int32)
    k, v = (unwritten(form, S * longest + 1, G, B, width) for width in (d, v_dim or d))
    for s, context in enumerate(contexts):
        place = torch.arange(context)
        slots = tables[s].long()[place // B] * B + place % B
        cache_rows.store_(k, slots, normal(g, context, G, d))
        cache_rows.store_(v, slots, normal(g, context, G, v_dim or d))
    return {"k": k, "v": v, "tables": tables, "contexts": torch.tensor(contexts, dtype=torch.int32)}


def attention_error(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
    """A score is off by at most e = error of a sum of d products |q||k|, weights by 2 e of themselves, sums by n u.
    Where queries and probabilities are rounded, by r of themselves, e grows by r |q||k| and the sum is off by r; what
    was widened to numbers of a q8_0 cache is rounded then, too."""
    d, context = i["q"].shape[-1], int(i["contexts"].max())
    keys, values = (cache_rows.widen(i[name]).nan_to_num() for name in ("k", "v"))
    rounded = i.get("attention", 0.0) * (2 if isinstance(i["k"], Q8Rows) else 1)
    score = (sum_error(d) + rounded) * i["q"].norm(dim=-1).max() * keys.norm(dim=-1).max() * i["scale"]
    return [float((2 * score + sum_error(context) + rounded + 2**-21) * values.abs().max())]


def place_qkv_case(
    T: int, N: int, G: int, d: int, r: int, B: int, norm: str, clip: float | None, t: KVFormat,
    values: str = "", v: int | None = None, v_scale: float = 1.0,
) -> Case:  # fmt: skip
    """values: "normed", "shared" with keys, or both; v wide where it is said."""
    shared, wide = "shared" in values, v or d

    def build(g: Generator, source: Source) -> Inputs:
        sizes = {"": (), "head": (d, d), "row": (N * d, G * d)}[norm]
        angle = normal(g, 50, r)
        return {
            "qkv": normal(g, T, (N + G) * d + (0 if shared else G * wide)) * 3,
            "k": unwritten(t, -(-T // B) + 2, G, B, d),
            "v": unwritten(t, -(-T // B) + 2, G, B, wide),
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
        kept = [cache_rows.widen(one) if isinstance(one, Q8Rows) else one for one in (k, v)]
        own = [] if shared else [rest.unflatten(1, (G, wide))]
        return [turned.unflatten(1, (-1, d)), *(one.nan_to_num() for one in kept), *own]

    def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
        """A norm as `relative`, a rotation 4 u of the larger of a pair; a stored key may fall to the next bf16, or
        the next code of q8_0, whose scale may be the next half."""
        lost = ((max(N, G) * d if norm == "row" else d) / 4 + 24 if norm else 0) + 6
        size, *rest = (x.abs().amax(-1, keepdim=True) * lost * U + x * 0 for x in (out[0], *out[3:]))
        key, value = (c.float().abs().amax(-1, keepdim=True) * lost * U + stored_error(t, c) for c in out[1:3])
        return [size, key, *([value, *rest] if "normed" in values else [0.0] * (1 + len(rest)))]

    kind = f"{norm or 'no'} norm{'' if clip is None else ' clipped'}"
    kind += f"{values and f' values {values}'}{f' {v} wide' if v else ''}{f' by {v_scale}' if v_scale != 1 else ''}"
    name = f"{LONG_NAMES[t.name]} {T}x{N}+2x{G}x{d} rotating {2 * r} page {B} {kind}"
    return Case(op="place_qkv_", name=name, build=build, call=call, allowed=allowed)


def stored_error(form: KVFormat, rows: Tensor) -> Tensor:
    """What a number that is stored may move by where the one before it moved by a little."""
    if form.name == "q8_0":
        peaks: Tensor = rows.unflatten(-1, (-1, form.block)).abs().amax(-1)
        return (peaks / 127 * 1.2).repeat_interleave(form.block, -1)
    return rows.float().abs() * (2.0**-7 if form.name == "bf16" else 0)


def place_qkv_cases() -> Iterator[Case]:
    """One projection's heads: with and without norms, clipping, a rotated part; the whole buffer and cache compared."""

    case = place_qkv_case
    for t in (KV_F32, KV_BF16):
        yield case(1, 1, 1, 16, 8, 16, "", None, t)
        yield case(1, 32, 4, 128, 64, 32, "head", None, t)
        yield case(3, 3, 3, 80, 20, 7, "head", 1.5, t)
        yield case(5, 4, 2, 24, 12, 16, "row", 2.0, t)
        yield case(17, 6, 2, 128, 64, 32, "row", None, t)
        yield case(70, 8, 4, 64, 32, 32, "head", None, t)
        yield case(1, 64, 8, 192, 32, 32, "", None, t, v=128, v_scale=0.707)
        yield case(9, 6, 3, 40, 14, 16, "head", 2.0, t, v=24, v_scale=1.5)
        yield case(5, 4, 2, 24, 10, 7, "row", None, t, "normed", v=36)
    for norm, clip in (("", None), ("head", None), ("row", 2.0)):
        yield case(3, 3, 3, 96, 20, 7, norm, clip, KV_Q8_0)
        yield case(17, 6, 2, 128, 64, 32, norm, clip, KV_Q8_0)
    yield case(1, 1, 1, 32, 8, 16, "head", 1.5, KV_Q8_0)
    yield case(1, 64, 8, 192, 32, 32, "", None, KV_Q8_0, v=128, v_scale=0.707)
    yield case(9, 6, 3, 32, 14, 16, "head", 2.0, KV_Q8_0, "normed", v=96)


def store_rows_cases() -> Iterator[Case]:
    """The same bits, also of zeros and of what q8_0 does not hold: the tiny, the huge, infinities and NaN."""

    def case(T: int, G: int, d: int, B: int, form: KVFormat) -> Case:
        def build(g: Generator, source: Source) -> Inputs:
            values = normal(g, T, G, d) * torch.logspace(-12, 12, T).view(-1, 1, 1)
            values[0, 0] = 0.0
            values[-1, 0, :1], values[-1, -1, -1:], values[0, -1, -1:] = float("nan"), float("inf"), float("-inf")
            slots = torch.randperm((-(-T // B) + 2) * B, generator=g)[:T]
            return {"rows": unwritten(form, -(-T // B) + 2, G, B, d), "slots": slots, "values": values}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            rows = i["rows"].clone()
            ops.store_rows_(rows, i["slots"], i["values"])
            kept = (rows.codes, rows.scales) if isinstance(rows, Q8Rows) else (rows,)
            return [cache_rows.widen(rows), *kept]

        return Case(op="store_rows_", name=f"{LONG_NAMES[form.name]} {T}x{G}x{d} page {B}", build=build, call=call)

    for T, G, d, B in ((1, 1, 32, 16), (7, 3, 96, 7), (40, 1, 576, 32), (25, 4, 128, 32)):
        yield case(T, G, d, B, KV_Q8_0)
    yield case(7, 3, 40, 7, KV_F32)
    yield case(7, 3, 40, 7, KV_BF16)


def attention_case(
    N: int, G: int, d: int, v: int | None, new: list[int], contexts: list[int], t: KVFormat,
    window: int | None = None, sinks: bool = False, B: int = 16, latent: bool = False, bench: bool = False,
    chunk: int | None = None,
) -> Case:  # fmt: skip
    """v: the width of a value, where it is said. latent: values are the first v numbers of keys, else a cache of their
    own."""

    def build(g: Generator, source: Source) -> Inputs:
        i = paged(g, contexts, G, B, d, t, v_dim=None if latent else v)
        values = cache_rows.first(i["k"], v or d) if latent else i["v"]
        q = normal(g, sum(new), N, d) if latent else fused(g, sum(new), N, d)[1]
        sink = torch.cat([torch.tensor([float("-inf")]), normal(g, N - 1) * 3]) if sinks else None
        return {**i, "v": values, "q": q, "starts": starts_of(new), "scale": 1 / math.sqrt(d), "sinks": sink}

    def call(ops: Ops, i: Inputs) -> list[Tensor]:
        batch, more = (i["tables"], i["starts"], i["contexts"]), () if chunk is None else (chunk,)
        return [ops.attention(i["q"], i["k"], i["v"], *batch, i["scale"], window, i["sinks"], *more)]

    seen = [min(c, (window or c) + n - 1) for n, c in zip(new, contexts, strict=True)]
    last = (p for n, c in zip(new, contexts, strict=True) for p in range(c - n + 1, c + 1))
    pairs = sum(min(keys, window or keys) for keys in last)
    kind = f"{' latent' * latent}{f' chunks {chunk}' if chunk else ''}{f' window {window}' if window else ''}"
    name = f"{LONG_NAMES[t.name]} {N}/{G} heads d{d}{f' v{v}' if v else ''} page {B}{kind}{' sinks' * sinks}"
    return Case(
        op="attention",
        name=f"{name}: new {new} of {contexts}",
        build=build,
        call=call,
        allowed=attention_error,
        bytes=t.bytes(sum(seen) * G * (d if latent else d + (v or d))),
        flops=2 * pairs * N * (d + (v or d)),
        bench=bench,
    )


def attention_cases() -> Iterator[Case]:
    def case(N: int, G: int, d: int, B: int, new: list[int], contexts: list[int], t: KVFormat, bench: bool) -> Case:
        return attention_case(N, G, d, None, new, contexts, t, B=B, bench=bench)

    f32, bf16, q8_0 = KV_F32, KV_BF16, KV_Q8_0
    for N, G, d, B in ((1, 1, 16, 16), (4, 4, 24, 16), (8, 2, 64, 32), (7, 1, 80, 16), (6, 2, 128, 48), (3, 3, 5, 7)):
        for t in (f32, bf16):
            yield case(N, G, d, B, [3, 1, 9], [3, 70, 601], t, bench=False)
    for N, G, d, B in ((4, 4, 32, 16), (8, 2, 64, 32), (6, 2, 128, 48), (3, 3, 96, 7)):
        yield case(N, G, d, B, [3, 1, 9], [3, 70, 601], q8_0, bench=False)
    yield case(2, 1, 64, 16, [1], [1700], q8_0, bench=False)
    yield case(6, 2, 96, 32, [1, 1, 1], [1, 70, 1601], q8_0, bench=False)
    yield case(4, 2, 32, 16, [150, 1], [150, 1], q8_0, bench=False)
    yield case(2, 1, 64, 16, [1], [1700], bf16, bench=False)
    yield case(6, 2, 80, 32, [1, 1, 1], [1, 70, 1601], bf16, bench=False)
    yield case(4, 4, 24, 7, [1, 1], [33, 300], f32, bench=False)
    yield case(4, 2, 32, 16, [150, 1], [150, 1], f32, bench=False)
    yield case(70, 1, 16, 16, [2], [40], f32, bench=False)
    for context in (1024, 8192):
        yield case(16, 16, 128, 16, [1], [context], bf16, bench=True)
        yield case(32, 4, 128, 16, [1] * 4, [context] * 4, bf16, bench=True)
    for t in (bf16, q8_0):
        yield case(32, 4, 128, 32, [1], [32768], t, bench=True)
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
        starts_S1=starts_of(new),
        contexts_S=torch.tensor(new, dtype=torch.int32) + torch.tensor(old, dtype=torch.int32),
    )


EXPERTS, TOP_K = 12, 3
N, G, HEAD, PAGE = 6, 2, 32, 16


def cache_of(g: Generator, contexts: list[int], form: KVFormat = KV_BF16) -> Inputs:
    return paged(g, contexts, G, PAGE, HEAD, form)


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
    return [cache_rows.widen(getattr(block, name)).nan_to_num() for name in CACHES[type(block)]]


def block_difference(ops: Ops, i: Inputs) -> list[Tensor]:
    """All that the block gives and keeps, less what the ops that it stands for do, of the same backend."""

    def run(attend: Callable[..., tuple[Tensor, Tensor, Choice | None]]) -> list[Tensor]:
        block = own_cache(i["block"])
        *out, choice = attend(i["x"].clone(), i["update"], block, i["places"], i["rows"])
        return [*out, *(choice or ()), *kept(block)]

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
