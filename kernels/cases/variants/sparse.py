"""Cases of the ops that choose keys. A choice is compared by what it gives away: how much more a key scores that was
left out than one that was taken. The Triton kernels have none of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ... import Ops
from ...formats import KV_BF16, KV_F32, KVFormat
from ..attention import LONG_NAMES, paged
from ..case import Case, Inputs, Source, U, fresh, normal, starts_of, sum_error

EPS = 1e-6


def place_cases() -> Iterator[Case]:
    def case(T: int, e: int, r: int, B: int, dtype: torch.dtype) -> Case:
        pages = -(-T // B) + 2

        def build(g: Generator, source: Source) -> Inputs:
            angle = normal(g, 50, r)
            return {
                "k": normal(g, T, e) * 3 + 1,
                "norm": (normal(g, e), normal(g, e)),
                "turns": (angle.cos(), angle.sin(), torch.randint(50, (T,), generator=g, dtype=torch.int32)),
                "slots": torch.randperm(pages * B, generator=g)[:T],
                "cache": torch.zeros(pages, 1, B, e, dtype=dtype),
            }

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            cache, (weight, bias), (cos, sin, at) = fresh(i, "cache"), i["norm"], i["turns"]
            ops.place_index_(cache, fresh(i, "k"), weight, bias, EPS, cos, sin, at, i["slots"])
            return [cache]

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """The mean is off by an error of sums, as is the root of the squares; a rotation mixes two of them. What is
            nearly halfway between two numbers of a narrower cache becomes either."""
            k, (weight, bias) = i["k"], i["norm"]
            spread = (k.abs().amax() / k.std(-1, unbiased=False).amin() + k.abs().amax()) * weight.abs().amax()
            lost = float(2 * (sum_error(e) + 8 * U) * (spread + bias.abs().amax()))
            return [lost + out[0].abs() * (2.0**-7 if dtype is torch.bfloat16 else 8 * U)]

        return Case(op="place_index_", name=f"{T}x{e} rotating {2 * r} pages of {B} {str(dtype)[6:]}", build=build,
                    call=call, allowed=allowed)  # fmt: skip

    yield case(1, 8, 4, 4, torch.float32)
    yield case(7, 20, 4, 16, torch.float32)
    yield case(40, 128, 32, 32, torch.bfloat16)
    yield case(33, 33, 5, 32, torch.float32)


def choose_cases() -> Iterator[Case]:
    """Contexts of fewer keys than may be seen, of as many, and of more; equal keys, of which the first count."""

    def case(J: int, e: int, top: int, new: list[int], old: list[int], t: KVFormat, bench: bool = False) -> Case:
        contexts = [n + o for n, o in zip(new, old, strict=True)]

        def build(g: Generator, source: Source) -> Inputs:
            T, B = sum(new), 16
            q = normal(g, T, J, e), normal(g, T, J)
            return {"q": q, "starts": starts_of(new), **paged(g, contexts, 1, B, e, t)}

        def call(ops: Ops, i: Inputs) -> list[Tensor]:
            batch, (q, weights) = (i["tables"], i["starts"], i["contexts"]), i["q"]
            slots = ops.choose_keys(q, weights, i["k"], *batch, top)
            return [slots if bench else _given_away(i, slots, top)]

        def allowed(i: Inputs, out: list[Tensor]) -> list[Tensor | float]:
            """Of each head's product, times its weight, and of the sum over heads; a key is compared with another."""
            q, weights = i["q"]
            key = float(i["k"].float().nan_to_num().norm(dim=-1).max())
            each = (q.norm(dim=-1) * weights.abs()).sum(1) * key
            return [2 * each * (sum_error(e) + sum_error(J))]

        return Case(
            op="choose_keys",
            name=f"{J} heads of {e} {top} of {contexts} new {new} {LONG_NAMES[t.name]}",
            build=build,
            call=call,
            allowed=allowed,
            bytes=t.bytes(sum(contexts) * e),
            flops=2 * sum(n * c for n, c in zip(new, contexts, strict=True)) * J * e,
            bench=bench,
        )

    yield case(1, 4, 1, [1], [0], KV_F32)
    yield case(3, 12, 8, [1], [40], KV_F32)
    yield case(14, 20, 24, [37, 5], [3, 0], KV_F32)
    yield case(5, 33, 16, [1, 1, 9, 1], [15, 16, 600, 0], KV_BF16)
    yield case(64, 128, 50, [3], [300], KV_BF16)
    yield case(9, 16, 7, [70], [0], KV_F32)
    for context in (4096, 32768):
        yield case(64, 128, 2048, [1], [context - 1], KV_BF16, bench=True)
    yield case(64, 128, 2048, [512], [4096 - 512], KV_BF16, bench=True)


def _given_away(i: Inputs, slots_TO: Tensor, top: int) -> Tensor:
    """Of each token how much more the best key scores that it does not see than the worst that it does; infinity where
    slots are not those of different keys up to its own, in their order, as many as there may be."""
    found = torch.zeros(len(slots_TO), dtype=torch.float64)
    q, weights = (one.double() for one in i["q"])
    B = i["k"].shape[2]
    for s, context in enumerate(i["contexts"].tolist()):
        first, last = int(i["starts"][s]), int(i["starts"][s + 1])
        places = torch.arange(context)
        slots = i["tables"][s].long()[places // B] * B + places % B
        keys = i["k"].flatten(0, 2)[slots].double()
        for t in range(first, last):
            n = context - last + t + 1
            mine = torch.isin(slots[:n], slots_TO[t].long())
            if not torch.equal(slots[:n][mine], slots_TO[t, : min(n, top)].long()) or bool((slots_TO[t, n:] + 1).any()):
                found[t] = float("inf")
            elif n > top:
                scores = weights[t] @ (q[t] @ keys[:n].T).clamp(min=0)
                found[t] = (scores[~mine].max() - scores[mine].min()).clamp(min=0)
    return found.float()


SPARSE_CASES = [case for maker in (place_cases, choose_cases) for case in maker()]
