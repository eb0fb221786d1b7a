"""Cases of the ops of keys that stand for several tokens each, and of chosen blocks of keys. A choice is compared by
what it gives away, as in `sparse.py`. The Triton kernels have none of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ... import Ops
from ...compressed.twins import nothing
from ...formats import KV_BF16, KV_F32, KVFormat
from ..attention import paged
from ..case import Case, Inputs, Source, U, fresh, normal, starts_of, sum_error

EPS = 1e-6


def pairs_cases() -> Iterator[Case]:
    for T, N, d, r, back in ((1, 1, 8, 4, False), (5, 3, 28, 6, True), (40, 8, 512, 32, False), (33, 2, 33, 1, True)):

        def build(g: Generator, source: Source, T: int = T, N: int = N, d: int = d, r: int = r) -> Inputs:
            angle = normal(g, 50, r)
            return {
                "x": normal(g, T, N, d),
                "turns": (angle.cos(), angle.sin()),
                "at": torch.randint(50, (T,), generator=g, dtype=torch.int32),
            }

        def call(ops: Ops, i: Inputs, back: bool = back) -> list[Tensor]:
            x, (cos, sin) = fresh(i, "x"), i["turns"]
            ops.rotate_pairs_(x, cos, sin, i["at"], back)
            return [x]

        name = f"{T}x{N}x{d} turning {2 * r}" + " back" * back
        yield Case(op="rotate_pairs_", name=name, build=build, call=call)


def fold_cases() -> Iterator[Case]:
    """Sequences that begin and that go on, with and without an entry that becomes whole, and one without a token. What
    tokens give is about 2, so that an entry is not much shorter than what it is made of."""

    def case(series: int, e: int, rate: int, new: list[int], old: list[int], dtype: torch.dtype) -> Case:
        page, T, S = 16, sum(new), len(new)
        contexts = [n + o for n, o in zip(new, old, strict=True)]
        longest = max(contexts)

        def build(g: Generator, source: Source) -> Inputs:
            tables = torch.randperm(S * longest, generator=g)[: S * longest].view(S, -1)
            at = [torch.arange(o, c) for o, c in zip(old, contexts, strict=True)]
            slots = torch.cat([tables[s][place // page] * page + place % page for s, place in enumerate(at)])
            angle, state = normal(g, longest + 1, 2), nothing((S + 1, series, 3, e))
            state[:, :, 1:] = torch.rand(S + 1, series, 2, e, generator=g) + 1
            state[:, :, 0] = normal(g, S + 1, series, e)
            return {
                "made": normal(g, T, series * e) + 2, "weighed": normal(g, T, series * e) * 2, "slots": slots,
                "places": normal(g, rate, series * e), "norm": normal(g, e), "turns": (angle.cos(), angle.sin()),
                "cache": torch.zeros(S * longest, 1, max(1, page // rate), e, dtype=dtype), "state": state,
                "batch": (torch.randperm(S + 1, generator=g)[:S].int(), starts_of(new), torch.tensor(contexts).int()),
            }  # fmt: skip

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            cache, state, (cos, sin), batch = fresh(i, "cache"), fresh(i, "state"), i["turns"], i["batch"]
            weights = i["places"], i["norm"], EPS, cos, sin
            where = page, i["slots"], batch[0], batch[1], batch[2]
            ops.fold_entries_(i["made"], i["weighed"], *weights, cache, state, *where)
            return [cache, state[:, :, 0], state[:, :, 1], state[:, :, 2]]

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """Each token multiplies by what an exponential is off by. The largest logarithm is exact. An RMSNorm makes
            entries of 1; what is nearly halfway between two numbers of a narrower cache becomes either."""
            off = (8 * (max(new) + rate) + 64) * U
            row = off * float(i["made"].abs().max() * i["norm"].abs().max()) * 4 + e * U
            halfway = out[0].abs().float() * (2.0**-7 if dtype is torch.bfloat16 else 0)
            size = float(i["made"].abs().max())
            return [halfway + row, 0.0, out[2] * off, out[2] * off * size]

        kind = f"{series} series of {e} rate {rate} new {new} old {old} {str(dtype)[6:]}"
        return Case(op="fold_entries_", name=kind, build=build, call=call, allowed=allowed)

    yield case(1, 8, 4, [1], [3], torch.float32)
    yield case(2, 20, 4, [1, 1, 1], [0, 3, 6], torch.float32)
    yield case(1, 128, 32, [70, 5], [0, 30], torch.bfloat16)
    yield case(2, 77, 4, [37, 0, 9], [2, 5, 0], torch.float32)
    yield case(2, 512, 4, [40], [0], torch.bfloat16)


def pool_cases() -> Iterator[Case]:
    for R, n, e in ((1, 4, 12), (7, 4, 128), (3, 5, 77), (40, 2, 8)):

        def build(g: Generator, source: Source, R: int = R, n: int = n, e: int = e) -> Inputs:
            return {"rows": normal(g, R, n, 2 * e) * 2, "places": normal(g, n, e)}

        def allowed(i: Inputs, out: list[Tensor], n: int = n, e: int = e) -> list[Tensor | float]:
            """A logarithm is off by a rounding of its terms, a weight by so much of itself."""
            logs = float(i["rows"][..., e:].abs().max() + i["places"].abs().max())
            return [i["rows"][..., :e].abs().amax(1) * (8 * n + 64 + 8 * logs) * U]

        yield Case(
            op="pool_runs", name=f"{R} of {n}x{e}", build=build,
            call=lambda ops, i: [ops.pool_runs(i["rows"], i["places"])], allowed=allowed,
        )  # fmt: skip


def entry_choice_cases() -> Iterator[Case]:
    """Of fewer keys than may be seen and of more; pages of more tokens than a key stands for, and of fewer."""

    def case(J: int, e: int, top: int, rate: int, page: int, rows: int, new: list[int], old: list[int]) -> Case:
        contexts = [n + o for n, o in zip(new, old, strict=True)]
        S, M, T = len(new), -(-max(contexts) // page), sum(new)

        def build(g: Generator, source: Source) -> Inputs:
            tables = torch.randperm(S * M + 1, generator=g)[: S * M].view(S, M).int()
            batch = tables, starts_of(new), torch.tensor(contexts).int()
            return {
                "q": normal(g, T, J, e),
                "w": normal(g, T, J),
                "k": normal(g, S * M + 1, 1, rows, e),
                "batch": batch,
            }

        def keys(i: Inputs, s: int, count: int) -> Tensor:
            ends = (torch.arange(count) + 1) * rate - 1
            at = i["batch"][0][s].long()[ends // page] * rows + ends % page * rows // page
            rows_Ce: Tensor = i["k"].flatten(0, 2)[at].double()
            return rows_Ce

        def given_away(i: Inputs, found_TO: Tensor) -> Tensor:
            out = []
            for s, context in enumerate(contexts):
                for t in range(sum(new[:s]), sum(new[: s + 1])):
                    n = (context - sum(new[: s + 1]) + t + 1) // rate
                    q, w = i["q"][t].double(), i["w"][t].double()
                    out.append(regret(w @ (q @ keys(i, s, n).T).clamp(min=0), found_TO[t], top))
            return torch.tensor(out)

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            tables, starts, ends = i["batch"]
            return [given_away(i, ops.choose_entries(i["q"], i["w"], i["k"], tables, starts, ends, top, rate, page))]

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            each = (i["q"].norm(dim=-1) * i["w"].abs()).sum(1) * float(i["k"].norm(dim=-1).max())
            return [2 * each * (sum_error(e) + sum_error(J))]

        name = f"{J} heads of {e} {top} of {contexts} new {new} rate {rate} pages of {page} rows {rows}"
        return Case(op="choose_entries", name=name, build=build, call=call, allowed=allowed)

    yield case(3, 12, 6, 4, 32, 8, [1, 5], [40, 0])
    yield case(14, 20, 5, 4, 16, 32, [37, 1, 1], [60, 3, 2])
    yield case(8, 128, 3, 64, 32, 1, [1, 9], [700, 260])
    yield case(5, 33, 7, 5, 16, 16, [70], [0])


def regret(scores: Tensor, found_O: Tensor, top: int, forced: int = 0) -> float:
    """How much more the best score gives that was not taken than the worst that was, the last `forced` ones, which have
    to be taken, aside; infinity where there are not as many as there may be, different ones, in their order."""
    n, found = len(scores), found_O.long()
    count = min(n, top)
    taken = found[:count]
    if (
        bool((found[count:] != -1).any())
        or bool((taken.diff() <= 0).any())
        or bool((taken < 0).any() | (taken >= n).any())
    ):
        return float("inf")
    mine = torch.zeros(n, dtype=torch.bool)
    mine[taken] = True
    free = torch.arange(n) < n - forced
    if not bool(mine[~free].all()):
        return float("inf")
    left, kept = scores[~mine], scores[mine & free]
    return 0.0 if not len(left) or not len(kept) else float((left.max() - kept.min()).clamp(min=0))


def block_cases() -> Iterator[Case]:
    """Of fewer blocks than may be seen and of more; a query in the middle of its block."""

    def case(G: int, e: int, size: int, top: int, local: int, new: list[int], old: list[int], t: KVFormat) -> Case:
        contexts, page = [n + o for n, o in zip(new, old, strict=True)], 16

        def build(g: Generator, source: Source) -> Inputs:
            return {"q": normal(g, sum(new), G, e), "starts": starts_of(new), **paged(g, contexts, 1, page, e, t)}

        def given_away(i: Inputs, found_TGO: Tensor) -> Tensor:
            out = []
            for s, context in enumerate(contexts):
                pages = i["tables"][s, : -(-context // page)].long()
                keys = i["k"][pages, 0].flatten(0, 1).double()
                for token in range(sum(new[:s]), sum(new[: s + 1])):
                    own = context - sum(new[: s + 1]) + token
                    scores = i["q"][token].double() @ keys[: own + 1].T
                    best = torch.nn.functional.pad(scores, (0, -(own + 1) % size), value=float("-inf"))
                    best = best.unflatten(1, (-1, size)).amax(2)
                    forced = min(local, best.shape[1])
                    out.append([regret(best[h], found_TGO[token, h], top, forced) for h in range(G)])
            return torch.tensor(out)

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            batch = i["tables"], i["starts"], i["contexts"]
            return [given_away(i, ops.choose_blocks(i["q"], i["k"], *batch, size, top, local))]

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            key = float(i["k"].float().nan_to_num().norm(dim=-1).max())
            return [2 * i["q"].norm(dim=-1) * key * sum_error(e)]

        name = f"{G} heads of {e} {top} blocks of {size} of {contexts} new {new} local {local} {t.name}"
        return Case(op="choose_blocks", name=name, build=build, call=call, allowed=allowed)

    yield case(1, 16, 16, 2, 1, [1], [100], KV_F32)
    yield case(2, 20, 32, 3, 1, [37, 1, 5], [60, 3, 300], KV_F32)
    yield case(4, 128, 64, 4, 2, [1, 9], [700, 400], KV_BF16)
    yield case(3, 33, 16, 5, 1, [70], [0], KV_BF16)


MAKERS = (pairs_cases, fold_cases, pool_cases, entry_choice_cases, block_cases)
POOLED_CASES = [case for maker in MAKERS for case in maker()]
