"""Attention on the CPU where its steps, tiles and items end: every way against the plain twin, the same bits in any
company, only the window's pages read, and memory that does not grow with the context.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from busy import HANG_S
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.blocks import cache_rows
from headrace.kernels.cases.attention import attention_error, paged
from headrace.kernels.cases.case import Inputs, worst
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
from headrace.kernels.formats import KV_BF16 as BF16
from headrace.kernels.formats import KV_F32 as F32
from headrace.kernels.formats import KV_Q8_0 as Q8_0
from headrace.kernels.formats import KVFormat
from headrace.kernels.isa import available_isas

STEP, CHUNK, ROUND, ITEM_ROWS = 32, 512, 64, 64  # of the C++


PAIRS = 2.0**-8 + 2.0**-17  # what products of bf16 lose of a query or a weight
WAYS = [
    (isa, products)
    for isa in available_isas()
    for products in ("float32", "bf16")
    if products == "float32" or Context(isa=isa).has_bf16_attention
]


@pytest.fixture(params=WAYS, ids=" ".join)
def ops(request: pytest.FixtureRequest) -> CpuOps:
    """The ops on each instruction set, with each kind of products that it has."""
    isa, products = request.param
    return CpuOps(Context(isa=isa, attention=products))


def inputs_of(
    heads: tuple[int, int], dims: tuple[int, int], page: int, new: list[int], contexts: list[int], form: KVFormat,
    latent: bool = False,
) -> Inputs:  # fmt: skip
    """heads: of queries, of keys. dims: of keys, of values. latent: values are the first numbers of keys."""
    g = torch.Generator().manual_seed(sum(contexts) + page)
    i = paged(g, contexts, heads[1], page, dims[0], form, v_dim=None if latent else dims[1])
    values = cache_rows.first(i["k"], dims[1]) if latent else i["v"]
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
    q = torch.randn(sum(new), heads[0], dims[0], generator=g)
    return {**i, "v": values, "q": q, "starts": starts, "scale": dims[0] ** -0.5}


def attend(ops: Any, i: Inputs, window: int | None = None, sinks: Tensor | None = None) -> Tensor:
    batch = i["tables"], i["starts"], i["contexts"]
    out: Tensor = ops.attention(i["q"], i["k"], i["v"], *batch, i["scale"], window, sinks)
    return out


def check(ops: CpuOps, i: Inputs, window: int | None = None) -> None:
    got, expected = attend(ops, i, window), attend(reference, i, window)
    lost = PAIRS if ops.context.attention == "bf16" else 0.0
    problem = worst(got, expected, attention_error({**i, "attention": lost}, [expected])[0])
    assert problem is None, problem


HEADS_AND_DIMS = [
    ((1, 1), (128, 128)),  # one key a head
    ((3, 1), (64, 64)),
    ((5, 1), (48, 48)),  # whole pairs of vectors of 8, not of 16
    ((7, 1), (100, 36)),  # no whole vectors
    ((8, 1), (128, 96)),  # as many rows as keys are read for as they lie
    ((9, 1), (32, 32)),  # and one more
    ((33, 1), (16, 16)),  # more heads on a key than an item has
    ((130, 2), (40, 24)),
    ((2, 1), (96, 96)),
    ((10, 2), (32, 160)),  # of eight rows five
    ((12, 1), (192, 128)),  # eight and four
]


@pytest.mark.parametrize("form", [F32, BF16])
@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize(("heads", "dims"), HEADS_AND_DIMS)
def test_heads_of_any_number_and_size(
    ops: CpuOps, heads: tuple[int, int], dims: tuple[int, int], latent: bool, form: KVFormat
) -> None:
    check(ops, inputs_of(heads, dims, 16, [1, 3], [75, 37], form, latent))


@pytest.mark.parametrize(
    ("heads", "dims", "latent"),
    [((1, 1), (128, 128), False), ((3, 1), (64, 32), False), ((9, 1), (32, 96), False), ((33, 1), (96, 52), True)],
)
def test_heads_of_any_number_over_q8_0(
    ops: CpuOps, heads: tuple[int, int], dims: tuple[int, int], latent: bool
) -> None:
    check(ops, inputs_of(heads, dims, 16, [1, 3], [75, 37], Q8_0, latent))


@pytest.mark.parametrize("page", [5, 16, 32, 100, 600])
@pytest.mark.parametrize("edge", [STEP, CHUNK])
def test_contexts_that_end_with_a_step_or_a_chunk(ops: CpuOps, page: int, edge: int) -> None:
    contexts = [edge - 1, edge, edge + 1, 1]
    check(ops, inputs_of((4, 2), (64, 64), page, [1, 1, 1, 1], contexts, BF16))
    check(ops, inputs_of((4, 2), (64, 64), page, [3, 2, edge + 1, 1], contexts, BF16))


@pytest.mark.parametrize("new", [ITEM_ROWS // 4 - 1, ITEM_ROWS // 4, ITEM_ROWS // 4 + 1, 2 * ITEM_ROWS // 4])
def test_prompts_that_end_with_a_block_of_queries(ops: CpuOps, new: int) -> None:
    check(ops, inputs_of((4, 1), (32, 32), 16, [new, new], [new, new + 50], BF16))


@pytest.mark.parametrize("context", [0, 20])
def test_a_sequence_without_new_tokens_changes_nothing(ops: CpuOps, context: int) -> None:
    i = inputs_of((4, 2), (64, 64), 16, [2, 0, 1], [40, context, 7], BF16)
    others = {
        "starts": torch.tensor([0, 2, 3], dtype=torch.int32),
        "contexts": torch.tensor([40, 7], dtype=torch.int32),
        "tables": i["tables"][[0, 2]],
    }
    assert torch.equal(attend(ops, i), attend(ops, {**i, **others}))


@pytest.mark.parametrize("window", [1, 3, STEP - 1, STEP, STEP + 1, 45])
def test_windows_that_cut_tiles_and_steps(ops: CpuOps, window: int) -> None:
    for heads in ((1, 1), (8, 1), (6, 2)):
        check(ops, inputs_of(heads, (64, 64), 32, [1, 40], [70, 110], BF16), window)


def test_more_chunks_than_states_are_kept_of(ops: CpuOps) -> None:
    """Few items: their chunks are done together, in rounds."""
    contexts = [CHUNK * (2 * ROUND + 5) + 7, CHUNK * 3]
    i = inputs_of((2, 1), (16, 16), 32, [1, 1], contexts, F32)
    check(ops, i)
    one, three = (CpuOps(replace(ops.context, threads=n)) for n in (1, 3))
    assert torch.equal(attend(one, i), attend(three, i))


ROWS = [(BF16, (4, 2), (80, 80)), (BF16, (8, 1), (64, 64)), (BF16, (1, 1), (128, 64)), (BF16, (36, 1), (64, 32)),
        (BF16, (5, 1), (96, 96)), (BF16, (12, 1), (64, 64)), (BF16, (6, 2), (192, 128)), (BF16, (16, 16), (64, 64)),
        (Q8_0, (4, 2), (96, 96)), (Q8_0, (36, 1), (64, 32))]  # fmt: skip


@pytest.mark.parametrize("window", [None, 37, 700])
@pytest.mark.parametrize("page", [16, 48])
@pytest.mark.parametrize(("form", "heads", "dims"), ROWS)
def test_a_token_has_the_same_bits_in_a_prompt_and_alone(
    ops: CpuOps, form: KVFormat, heads: tuple[int, int], dims: tuple[int, int], page: int, window: int | None
) -> None:
    """Alone it reads keys as they lie where there are few heads; in a prompt they are widened first."""
    context, new = 1100, 90
    i = inputs_of(heads, dims, page, [new], [context], form)
    sinks = torch.randn(heads[0], generator=torch.Generator().manual_seed(7))

    def run(first: int, n: int) -> Tensor:
        starts = torch.tensor([0, n], dtype=torch.int32)
        contexts = torch.tensor([context - new + first + n], dtype=torch.int32)
        return attend(ops, {**i, "q": i["q"][first : first + n], "starts": starts, "contexts": contexts}, window, sinks)

    prompt = run(0, new)
    for t in (0, 1, 31, 32, 89):
        assert torch.equal(run(t, 1)[0], prompt[t])


@pytest.mark.parametrize("heads", [(8, 2), (16, 16), (20, 5)])
def test_a_sequence_has_the_same_bits_among_others_and_alone(ops: CpuOps, heads: tuple[int, int]) -> None:
    """Among many every worker does whole items, of several heads of keys; alone chunks are spread."""
    contexts = [1100, 3, 700, 1101, 513, 64, 65, 2000]
    i = inputs_of(heads, (64, 64), 32, [1] * 8, contexts, BF16)
    together = attend(ops, i)
    for s, context in enumerate(contexts):
        batch = {
            "starts": torch.tensor([0, 1], dtype=torch.int32),
            "contexts": torch.tensor([context], dtype=torch.int32),
        }
        alone = {"q": i["q"][s : s + 1], "tables": i["tables"][s : s + 1], **batch}
        assert torch.equal(attend(ops, {**i, **alone})[0], together[s])


@pytest.mark.parametrize("heads", [(8, 2), (16, 16), (24, 3)])
@pytest.mark.parametrize("window", [None, 300])
def test_heads_of_keys_side_by_side_have_the_bits_of_each_alone(
    ops: CpuOps, heads: tuple[int, int], window: int | None
) -> None:
    """One thread takes several in one item; many threads take them one by one."""
    i = inputs_of(heads, (64, 64), 32, [1, 2], [3000, 1700], BF16)
    check(ops, i, window)
    many = CpuOps(replace(ops.context, threads=24))
    assert torch.equal(attend(ops, i, window), attend(many, i, window))


@pytest.mark.parametrize("new", [1, 3, 150])
@pytest.mark.parametrize("page", [16, 48])
@pytest.mark.parametrize("form", [F32, BF16])
def test_pages_wholly_before_a_window_are_not_read(ops: CpuOps, form: KVFormat, page: int, new: int) -> None:
    """They may be another sequence's by now: here they lie outside of the cache."""
    context, window = 700, 100
    i = inputs_of((4, 2), (64, 64), page, [new], [context], form)
    expected, left = attend(ops, i, window), i["tables"].clone()
    unread = (context - new - window + 1) // page
    left[0, :unread] = 1 << 30
    for kept in ("k", "v"):
        i[kept][i["tables"][0, :unread].long()] = float("nan")
    assert torch.equal(attend(ops, {**i, "tables": left}, window), expected)


@pytest.mark.parametrize("window", [None, 5, 33])
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (12, 2)])
@pytest.mark.parametrize("form", [F32, BF16, Q8_0])
def test_a_value_that_is_none_stays_with_those_who_see_it(
    ops: CpuOps, form: KVFormat, heads: tuple[int, int], window: int | None
) -> None:
    """Tokens before it, whose pages may be another request's later, and tokens behind whose windows it lies, have the
    bits that they have without it: none of them is multiplied by it, not by 0 either."""
    new, context = 45, 78
    i = inputs_of(heads, (64, 64), 16, [new], [context], form)
    expected = attend(ops, i, window)
    for bad in (0, 1, 16, 30, 31, 44):
        damaged = {**i, "k": i["k"].clone(), "v": i["v"].clone()}
        place = context - new + bad
        slot = (i["tables"][0].long()[place // 16] * 16 + place % 16).view(1)
        for name, number in (("k", float("nan")), ("v", float("inf"))):
            cache_rows.store_(damaged[name], slot, torch.full((1, heads[1], 64), number))
        got, until = attend(ops, damaged, window), new if window is None else bad + window
        assert torch.equal(got[:bad], expected[:bad])
        assert torch.equal(got[until:], expected[until:])
        assert not got[bad:until].isfinite().any()


MEMORY = """
import sys, torch
from headrace.kernels import _cpu
from headrace.kernels.context import Context
from headrace.kernels.cpu import CpuOps
heads, groups, dim, v_dim, new = map(int, sys.argv[1:6])
ops, held = CpuOps(Context(threads=2)), []
for context in map(int, sys.argv[6:]):
    cache = torch.zeros(-(-context // 32), groups, 32, dim, dtype=torch.bfloat16)
    table = torch.arange(len(cache), dtype=torch.int32).view(1, -1)
    starts, contexts = torch.tensor([0, new], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
    ops.attention(torch.zeros(new, heads, dim), cache, cache[..., :v_dim], table, starts, contexts, 1.0)
    held.append(_cpu.arena_bytes())
print(*held)
"""


@pytest.mark.parametrize(
    ("heads", "groups", "dim", "v_dim", "new"), [(8, 1, 64, 64, 1), (128, 1, 96, 64, 1), (2, 1, 16, 16, 512)]
)
def test_memory_does_not_grow_with_the_context(heads: int, groups: int, dim: int, v_dim: int, new: int) -> None:
    """Of one new token, whose chunks are spread over the team, and of a piece of a prompt."""
    sizes = [str(n) for n in (heads, groups, dim, v_dim, new, CHUNK * ROUND, CHUNK * ROUND * 4)]
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *sizes],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    short, long = map(int, run.stdout.split())
    assert short == long > 0
