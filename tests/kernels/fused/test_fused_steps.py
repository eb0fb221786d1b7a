"""Launches that stand for several ops, against these ops of the plain twin: under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
from headrace.kernels import FORMATS, ExpertLayout, gpu, reference
from headrace.kernels.blocks import cache_rows
from headrace.kernels.blocks.cache_rows import Rows
from headrace.kernels.cases.attention import attention_block_cases, kept, own_cache
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.decoder_layer import Pages, Places, Router
from headrace.kernels.formats import KV_FORMATS
from headrace.kernels.gpu import block as blocks
from headrace.kernels.gpu import launch
from headrace.kernels.gpu.attention.attention import place_and_attend
from headrace.kernels.gpu.attention.decode_placed import Place
from headrace.kernels.gpu.cores import arrivals
from headrace.kernels.gpu.normed.linear import norm_linear
from headrace.kernels.gpu.normed.route import norm_route, takes
from headrace.kernels.gpu.normed.stream import Stream
from headrace.kernels.packed import Matrix, Stacked

pytestmark = pytest.mark.versions
N, G, PAGE = 6, 2, 16


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def caches(form: str, d: int, v: int, pages: int) -> tuple[Rows, Rows]:
    """With rows in all slots."""
    found = tuple(cache_rows.empty(KV_FORMATS[form], pages, G, PAGE, size, torch.device("cpu")) for size in (d, v))
    slots = torch.arange(pages * PAGE)
    for seed, (rows, size) in enumerate(zip(found, (d, v), strict=True)):
        reference.store_rows_(rows, slots, random(seed + 7, len(slots), G, size))
    return found  # type: ignore[return-value]


def apart(rows: Rows) -> Rows:
    """A cache of its own with the same rows."""
    return rows.clone()


ATTENDED = {  # a cache, contexts, d, v, rotated pairs, and what else is asked
    "f32 short": ("f32", [1, 40], 32, 32, 16, {}),
    "f32 in parts": ("f32", [600, 257, 256], 32, 32, 16, {"norms": True}),
    "bf16 in parts": ("bf16", [700, 3], 32, 32, 8, {"norms": True, "clip": 1.0}),
    "q8_0 in parts": ("q8_0", [1, 530], 64, 64, 32, {"norms": True}),
    "window": ("f32", [300, 20], 32, 32, 16, {"window": 9, "sinks": True}),
    "wide window in parts": ("f32", [900, 20], 32, 32, 16, {"window": 700, "sinks": True}),
    "chunks": ("f32", [33, 32, 90], 32, 32, 0, {"chunk": 32}),
    "narrow values": ("f32", [290, 5], 48, 32, 8, {"v_scale": 0.7, "sinks": True}),
}


@pytest.mark.parametrize("name", ATTENDED)
def test_heads_made_ready_and_attention_in_one_launch(name: str) -> None:
    form, contexts, d, v, pairs, asked = ATTENDED[name]
    S, M = len(contexts), -(-max(contexts) // PAGE)
    k, values = caches(form, d, v, S * M)
    qkv, scale = random(1, S, (N + G) * d + G * v), d**-0.5
    tables = torch.randperm(S * M, generator=torch.Generator().manual_seed(2)).view(S, M).to(torch.int32)
    ends = torch.tensor(contexts) - 1
    slots = tables[torch.arange(S), ends // PAGE].long() * PAGE + ends % PAGE
    places = Places(
        positions_T=ends.int(), slots_T=slots, tables_SM=tables, contexts_S=torch.tensor(contexts, dtype=torch.int32),
        starts_S1=torch.arange(S + 1, dtype=torch.int32),
    )  # fmt: skip
    turns = torch.rand(1000, pairs, generator=torch.Generator().manual_seed(3)) * 6
    norms = (1 + random(4, d) / 4, 1 + random(5, d) / 4) if asked.get("norms") else None
    how = Place(
        slots, turns.cos(), turns.sin(), places.positions_T, norms, 1e-6, asked.get("clip"), asked.get("v_scale", 1.0)
    )
    sinks = random(6, N) if asked.get("sinks") else None
    seen = asked.get("window"), sinks, asked.get("chunk")

    wanted_k, wanted_v, made = apart(k), apart(values), qkv.clone()
    reference.place_qkv_(
        made, wanted_k, wanted_v, slots, how.cos_Pr, how.sin_Pr, how.positions_T, *(norms or (None, None)), how.eps,
        how.clip, v_scale=how.v_scale,
    )  # fmt: skip
    batch = tables, places.starts_S1, places.contexts_S
    wanted = reference.attention(made[:, : N * d].unflatten(1, (N, d)), wanted_k, wanted_v, *batch, scale, *seen)

    found = [
        place_and_attend(qkv, own_k, own_v, Pages(slots, tables), places, how, scale, *seen)
        for own_k, own_v in [(apart(k), apart(values)), (k, values)]
    ]
    assert torch.equal(*found), "the order of sums is fixed"
    tolerance = {"f32": 1e-5, "bf16": 2e-2, "q8_0": 1e-2}[form]
    torch.testing.assert_close(found[0], wanted, rtol=tolerance, atol=tolerance)
    for rows, expected in ((k, wanted_k), (values, wanted_v)):
        got, kept = cache_rows.widen(rows), cache_rows.widen(expected)
        torch.testing.assert_close(
            got, kept, rtol=2**-7 if form == "bf16" else 1e-5, atol=2e-2 * (form == "q8_0") + 1e-6
        )
    assert not arrivals.counters(qkv.device, "attention", S * G).any(), "counters stand at 0 again"


@pytest.mark.parametrize("name", ["f32", "q4_0"])
def test_an_update_in_ram_gives_the_bits_that_it_gives_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps read it in RAM, steps by hand have brought it up; both are held against each other at start."""
    case = next(case for case in attention_block_cases() if case.name.startswith(f"{name} 96 new [1]"))
    given, found = case.inputs(), []
    for is_far in (False, True):
        monkeypatch.setattr(blocks, "_is_far", lambda *_, is_far=is_far: is_far)
        block = own_cache(given["block"])
        x, h, choice = gpu.attention_block(given["x"].clone(), given["update"], block, given["places"])
        assert choice is not None
        found.append([x, h, *choice, *kept(block)])
    assert all(map(torch.equal, *found))


def test_counters_are_a_stream_s_own_and_stay_where_graphs_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of two streams may overlap. More of them are new memory, and what was there is not given back."""
    cpu, stream, is_captured = torch.device("cpu"), 1, False
    monkeypatch.setattr(arrivals, "_kept", {})
    monkeypatch.setattr(launch, "stream", lambda _device: stream)
    monkeypatch.setattr(launch, "is_captured", lambda _device: is_captured)
    first = arrivals.counters(cpu, "linear", 10)
    assert arrivals.counters(cpu, "linear", arrivals.LEAST) is first
    assert arrivals.counters(cpu, "route", 10) is not first
    stream = 2
    assert arrivals.counters(cpu, "linear", 10) is not first
    stream, more = 1, arrivals.LEAST + 1
    grown = arrivals.counters(cpu, "linear", more)
    assert len(grown) >= more
    assert not grown.any()
    is_captured = True
    assert arrivals.counters(cpu, "linear", 10) is grown
    assert any(one is first for made in arrivals._kept.values() for one in made), "a graph may count there"
    stream = 3
    with pytest.raises(AssertionError, match="linear is captured in a stream in which it has not run"):
        arrivals.counters(cpu, "linear", 10)


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0", "q4_0", "q6_k", "q4_k"])
def test_a_norm_before_a_product(name: str, update: bool) -> None:
    """Of two parts, one of another format, with a bias."""
    D, source = 512, RandomSource(torch.Generator().manual_seed(1))
    parts = Stacked((source.matrix(FORMATS[name], 9, D), source.matrix(FORMATS["q8_0"], 6, D)))
    x, y, norm, bias = random(2, 1, D), random(3, 1, D) if update else None, 1 + random(4, D) / 4, random(5, 15)
    wanted_x = x.clone()
    h = reference.rmsnorm(x, norm, 1e-6) if y is None else reference.add_rmsnorm_(wanted_x, y, norm, 1e-6, 0.5)
    wanted = torch.cat([reference.linear(h, part) for part in parts.parts], dim=1) + bias
    before = x.clone()
    after, found = norm_linear(Stream(x, y, 0.5, norm, 1e-6), parts, bias)
    torch.testing.assert_close(after, wanted_x, rtol=0, atol=0)
    assert torch.equal(x, before), "other programs may still read it"
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-5 * float(wanted.abs().max()))


ROUTERS = {
    "softmax": {"scoring": "softmax", "renormalise": True},
    "logits": {"scoring": "softmax_topk", "renormalise": False, "bias": True},
    "groups": {"scoring": "sigmoid", "renormalise": True, "choice": True, "groups": 4, "top_groups": 2, "scale": 2.5},
    "factors": {"scoring": "softmax", "renormalise": True, "factors": True},
}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("form", ["f32", "bf16"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_norm_router_and_choice_in_one_launch(name: str, form: str, tokens: int) -> None:
    D, E, how = 160, 24, dict(ROUTERS[name])
    added = {"bias": "bias_E", "choice": "choice_bias_E", "factors": "factors_E"}
    more = {to: random(8, E) / 4 + 1 for name, to in added.items() if how.pop(name, False)}
    matrix = RandomSource(torch.Generator().manual_seed(1)).matrix(FORMATS[form], E, D)
    router = Router(matrix=matrix, top_k=5, **more, **how)
    assert takes(tokens, router)
    x, y, norm = random(2, tokens, D), random(3, tokens, D), 1 + random(4, D) / 4
    wanted_x = x.clone()
    h = reference.add_rmsnorm_(wanted_x, y, norm, 1e-6, 1.0)
    ids, weights = reference.route(h, router)
    found = [norm_route(Stream(x, y, 1.0, norm, 1e-6), router) for _ in range(2)]
    after, normed, (chosen, shares) = found[0]
    torch.testing.assert_close(after, wanted_x, rtol=0, atol=0)
    torch.testing.assert_close(normed, h, rtol=1e-5, atol=1e-6)
    assert torch.equal(chosen, ids)
    torch.testing.assert_close(shares, weights, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[1][2][1], shares)
    without = norm_route(Stream(wanted_x, None, 1.0, norm, 1e-6), router)
    assert without[0] is wanted_x
    assert torch.equal(without[2][0], ids)


def test_routers_that_no_launch_has_go_on_by_ops() -> None:
    plain = Router(matrix=Matrix.plain(torch.zeros(8, 64)), top_k=2, scoring="softmax", renormalise=True)
    assert takes(16, plain)
    assert not takes(17, plain)
    assert not takes(1, replace(plain, scoring="sparsemixer"))
    assert not takes(1, replace(plain, matrix=Matrix.empty(FORMATS["q8_0"], 8, 64)))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_experts_find_their_numbers_in_a_bank(tokens: int, biased: bool) -> None:
    """Four of seven experts are in the bank."""
    g = torch.Generator().manual_seed(3)
    layout = ExpertLayout(format=FORMATS["q8_0"], hidden=64, width=32, biased=biased)
    bank, local = RandomSource(g).bank(layout, 4), torch.tensor([-1, 2, 0, -1, 3, 1, -1], dtype=torch.int32)
    ids = torch.tensor([[1, 0, 5], [3, 6, 0], [4, 2, 1]], dtype=torch.int32)[:tokens]
    x, weights = random(1, tokens, 64), torch.rand(tokens, 3, generator=g)
    wanted = gpu.experts(x, local[ids.long()], weights, bank)
    assert torch.equal(gpu.experts(x, ids, weights, bank, local), wanted)
    assert torch.equal(
        reference.experts(x, ids, weights, bank, local), reference.experts(x, local[ids.long()], weights, bank)
    )
