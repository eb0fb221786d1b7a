"""The expert cache and the KV cache share memory: whatever moves between them, no token changes, and a replay counts
the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cached import PROMPTS, Unsteady, load, made, recorded, say
from shared_blocks import TIGHT, Of, counted, unsettled
from stand_in_gpu import StandIn

from headrace import LLM, SamplingParams
from headrace.engine.cuda_graphs import verify
from headrace.engine.cuda_graphs.saved_trials import StepTimes
from headrace.engine.experts.cache import report
from headrace.engine.experts.cache.expert_cache import ExpertCache
from headrace.engine.experts.cache.shared_memory import EXTENT, SharedMemory, SharedRoom
from headrace.engine.memory import sharing
from headrace.engine.model import lent_pages
from headrace.engine.model.kv_cache import KVCache, paged_units
from headrace.engine.model.lent_pages import LentPages
from headrace.engine.placement.placement import Tier
from headrace.engine.planning.replays import Replays
from headrace.engine.policies import registry
from headrace.engine.policies.between import Resizable, Resize, take_in
from headrace.engine.policies.protocol import Moves, PolicyError
from headrace.engine.policies.residents import Residents
from headrace.kernels.formats import KV_BF16
from headrace.loaders.weights.checkpoint import LoadOptions, open_directory

BOX = [name for name in registry.BOX if name not in ("belady", "second-gpu")]


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[int]], Replays]:
    return recorded(tmp_path_factory.mktemp("traces") / "run.trace", 4, max_context=512, prefill_chunk=64)


@pytest.fixture
def gpu(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Whose graphs are faster than steps by hand."""
    monkeypatch.setattr(verify, "_time", lambda *_: StepTimes(graph_s=0.003, eager_s=0.004))
    return gpu


class Room(Unsteady):
    """Without sense, too, where its budget changes."""

    def resized(self, shape: Any, budget: int, residents: Any) -> Moves:
        there = [(n, e) for n, of in enumerate(residents) for e in sorted(of)]
        fits = budget // shape.expert_bytes[0]
        return Moves(evict=tuple(self.random.sample(there, max(0, len(there) - self.random.randrange(fits + 1)))))


def twice(name: str, of: Replays) -> list[Any]:
    return [Room(1) if name == "room" else made(name, of) for _ in range(2)]


@pytest.mark.parametrize("name", [*BOX, "belady", "room"])
def test_budgets_that_change_by_chance(name: str, of: Of) -> None:
    said, known = of
    policy, again = twice(name, known)
    with load(policy, **TIGHT) as llm:
        seen, first = unsettled(llm, 7), llm.parts.expert_cache.budget  # type: ignore[union-attr]
        assert say(llm, 4) == said
        assert len({budget for _, budget in seen}) > 4
        counted(llm, first, again, known)


@pytest.mark.parametrize("name", [*BOX, "belady", "room"])
def test_the_same_where_steps_are_graphs(name: str, of: Of, gpu: StandIn) -> None:
    """On a driver whose streams are threads."""
    said, known = of
    policy, again = twice(name, known)
    with load(policy, **TIGHT) as llm:
        assert llm.parts.graphed is not None
        seen, first = unsettled(llm, 8), llm.parts.expert_cache.budget  # type: ignore[union-attr]
        assert say(llm, 4) == said
        assert gpu.recorders[0].replays > 10
        assert len({budget for _, budget in seen}) > 4
        counted(llm, first, again, known, late=True)


@pytest.mark.parametrize("kv_format", ["bf16", "q8_0"])
def test_long_prompts_take_room_and_give_it_back(kv_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself: places go when a prompt needs pages, and come back when none did for long."""
    monkeypatch.setattr(lent_pages, "LONG", 24)
    monkeypatch.setattr(lent_pages, "EVERY", 4)
    long, params = (
        [[7 + n % 900 for n in range(480)], [901 - n % 870 for n in range(450)]],
        SamplingParams(max_new_tokens=20, ignore_eos=True),
    )
    options = {**TIGHT, "kv_format": kv_format}

    def tokens(llm: LLM) -> list[list[int]]:
        parts = [PROMPTS, long, PROMPTS, PROMPTS[:2], PROMPTS[1:3], PROMPTS[:1], long[:1]]
        return [one.token_ids for part in parts for one in llm.generate(part, params)]

    with LLM("demo", **{name: value for name, value in options.items() if name != "vram_limit"}) as alone:
        wanted = tokens(alone)
    with load("lru", **options) as llm:
        cache, pages = llm.parts.expert_cache, llm.loop.pages
        assert isinstance(cache, ExpertCache)
        assert isinstance(pages, LentPages)
        assert pages.open == EXTENT
        assert tokens(llm) == wanted
        budgets = [event.budget for events in cache.events.values() for event in events]  # type: ignore[union-attr]
        fell = [after < before for before, after in pairwise(budgets)]
        assert True in fell
        assert False in fell
        assert max(budgets) <= llm.parts.memory_plan.expert_cache + llm.parts.kv_budget.kv_bytes


# ---- pages


def test_pages_are_opened_when_there_is_none_and_closed_when_none_was_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent_pages, "LONG", 8)
    monkeypatch.setattr(lent_pages, "EVERY", 2)
    lent: list[tuple[int, int]] = []
    pages = LentPages(range(6, 6 + 3 * 20, 3), lambda first, last: lent.append((first, last)))
    assert (lent, pages.available) == ([(0, EXTENT)], 20)
    held = pages.allocate(3)
    assert held == [6, 9, 12]
    more = pages.allocate(10)
    assert lent[1:] == [(8, 16)]
    assert pages.available == 7
    pages.publish([1] * 32, held[:1], [], 32)
    pages.release(more)
    before = list(pages.taken)
    for _ in range(8):
        pages.between_passes()
    assert lent[2:] == [(16, 8)], "after LONG passes, not before"
    assert pages.available == 17
    assert [page for page, (a, b) in enumerate(zip(pages.taken, before, strict=True)) if a != b] == list(
        range(6 + 24, 6 + 48, 3)
    )
    pages.release(held)
    for _ in range(30):
        pages.between_passes()
    assert pages.open == EXTENT, "never fewer"
    assert pages.known([1] * 40)
    assert sorted(pages.allocate(20)) == list(range(6, 66, 3))


def test_content_that_is_young_keeps_pages_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent_pages, "LONG", 8)
    monkeypatch.setattr(lent_pages, "EVERY", 2)
    pages = LentPages(range(20), lambda first, last: None)
    held, tokens = pages.allocate(12), list(range(12 * 32))
    digests: list[bytes] = []
    pages.publish(tokens, held, digests, len(tokens))
    pages.release(held)
    for _ in range(8):
        pages.between_passes()
    assert pages.open == 16
    assert len(pages.known(tokens)) == 11
    for _ in range(10):
        pages.between_passes()
    assert pages.open == 8
    assert len(pages.known(tokens)) == 8, "what lay in pages that were closed is forgotten"


def test_tensors_of_pages_lie_side_by_side() -> None:
    room = SharedRoom(units=(128, 128, 128), pages=4, spare=1, experts=1000, sizes=(500,))
    memory = SharedMemory(room, torch.device("cpu"))
    assert room.nbytes == len(memory.data) == 5 * 384 + 1000
    memory.data.fill_(1)
    for tensor in range(3):
        rows = memory.rows(tensor)
        for place, page in enumerate(room.numbers):
            rows[page] = 10 * place + tensor
    found = memory.data[room.taken(0) : room.taken(4)].view(4, 3, 128)
    assert torch.equal(found[:, :, 5], 10 * torch.arange(4)[:, None] + torch.arange(3))
    assert bool((memory.data[: room.taken(0)] == 1).all())
    memory.clear(1, 3)
    assert not memory.data[room.taken(1) : room.taken(3)].any()
    assert memory.data[room.taken(0) : room.taken(1)].any()
    assert memory.places(500).shape == (5, 500)


# ---- policies


def test_every_policy_of_the_box_can_have_another_budget(of: Of) -> None:
    for name in registry.BOX:
        policy = made(name, of[1])
        assert isinstance(policy, Resizable)
        there = Residents(policy, of[1].shape, of[1].shape.nbytes // 2)
        for share in (0.1, 0.9, 0.0, 0.4):
            take_in(there, 0, Resize(int(share * of[1].shape.nbytes)))
            assert there.used <= there.budget


def test_a_policy_that_keeps_too_much(of: Of) -> None:
    class Keeps(Unsteady):
        name = "keeps"

        def resized(self, shape: Any, budget: int, residents: Any) -> Moves:
            return Moves()

    there = Residents(Keeps(1), of[1].shape, of[1].shape.nbytes)
    with pytest.raises(PolicyError, match=r"policy keeps has \d+ bytes of experts resident between two passes, of 7 "):
        take_in(there, 0, Resize(7))


def test_a_policy_without_resized_keeps_what_is_always_left(of: Of) -> None:
    with load(Unsteady(3), **TIGHT) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, ExpertCache)
        budget = cache.budget
        assert 0 < budget <= llm.parts.memory_plan.expert_cache
        unsettled(llm, 5)
        assert say(llm, 4) == of[0]
        assert cache.budget == budget
        assert "no `resized`" in "".join(report.at_start(cache))


def test_a_size_that_was_said_is_kept() -> None:
    with load("lru", expert_cache="20%", **TIGHT) as llm:
        assert llm.parts.memory_plan.shared is None
        assert not isinstance(llm.loop.pages, LentPages)
    with load("lru", expert_cache="auto", **TIGHT) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, ExpertCache)
        assert any("pages of the KV cache take room from it" in line for line in report.at_start(cache))


# ---- other models, and what else looks at pages


def squeezed(model: str, **options: Any) -> dict[str, Any]:
    """Options with which about half of a model's experts have no room in VRAM."""
    beside = {"device": "simulated", "policy": "lru", "max_context": 192, "max_sequences": 3, "prefill_chunk": 150}
    with LLM(model, **beside, **options) as llm:
        plan = llm.parts.memory_plan
        limit = plan.memory[Tier.GPU0].total - 0.67 * plan.kv_budget.kv_bytes - 0.5 * sum(plan.experts)
    return {**beside, **options, "vram_limit": limit / 1e9}


# Sizes of rows: an indexer's keys beside latents, keys wider than values, windows with fewer heads beside full layers.
SEVERAL = ["glm_moe_dsa", "glm5_next", "mimo_v2_flash", "gemma4_text"]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "qwen3_next", "gpt_oss", "olmoe", *SEVERAL])
def test_families(family: str, checkpoints: Callable[[str], Path]) -> None:
    """Keys and values, latents, recurrent states beside them, windows with own pools, rows of several sizes."""
    options = squeezed(str(checkpoints(family)), dtype="bfloat16")
    prompts = [[5 + n % 50 for n in range(150)], [40 - n % 31 for n in range(100)], [7, 8, 9]]
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    with LLM(str(checkpoints(family)), device="simulated", cpu_moe=True, dtype="bfloat16", max_context=192) as alone:
        wanted = [one.token_ids for one in alone.generate(prompts, params)]
        logits = alone.logits(prompts[0])
    with LLM(str(checkpoints(family)), **options) as llm:
        assert llm.parts.memory_plan.shared is not None, llm.parts.memory_plan.not_shared
        assert (len(set(llm.parts.memory_plan.shared.units)) > 1) == (family in SEVERAL)
        seen = unsettled(llm, 3)
        assert [one.token_ids for one in llm.generate(prompts, params)] == wanted
        assert len({pages for pages, _ in seen}) > 1
        assert len({budget for _, budget in seen}) > 1
        torch.testing.assert_close(llm.logits(prompts[0]), logits, rtol=0, atol=2e-3)  # sums in another order


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v4", "deepseek_v32", "minimax_m3_vl_text", *SEVERAL])
def test_pages_of_all_tensors_lie_apart(family: str, checkpoints: Callable[[str], Path]) -> None:
    """Also of models with compressed entries, which no GPU runs yet, nor what plays one."""
    spec = open_directory(checkpoints(family), LoadOptions()).spec
    units = tuple(paged_units(spec, KV_BF16, []))
    room = SharedRoom(units=units, pages=3, spare=1, experts=0, sizes=(64,))
    memory = SharedMemory(room, torch.device("cpu"))
    cache = KVCache(spec, 4, KV_BF16, shared=memory)
    pages = [0, *room.numbers]
    parts = {(page, n): part.view(torch.uint8) for page in pages for n, part in enumerate(cache.page_parts(page))}
    assert len(parts) == 4 * len(units)
    assert sum(part.numel() for part in parts.values()) == room.nbytes
    for number, part in enumerate(parts.values()):
        part.fill_(number % 251)
    assert all(bool((part == number % 251).all()) for number, part in enumerate(parts.values()))


def test_what_cannot_be_shared_says_why(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "paged_units", lambda *_: iter([128, 72]))
    options = squeezed(str(checkpoints("qwen3_moe")))
    with LLM(str(checkpoints("qwen3_moe")), **options) as llm:
        cache = llm.parts.expert_cache
        assert isinstance(cache, ExpertCache)
        assert cache.shared is None
        assert cache.budget == llm.parts.memory_plan.expert_cache
        assert any("a page of 72 bytes in a layer does not end where" in line for line in report.at_start(cache))
    monkeypatch.setattr(sharing, "paged_units", lambda *_: iter([]))
    with LLM(str(checkpoints("qwen3_moe")), **options) as llm:
        assert llm.parts.memory_plan.not_shared == "it has no KV cache"


def test_a_later_run_finds_pages_that_were_closed_on_disk(tmp_path: Path) -> None:
    """They are written as they were when they were known, or not at all."""
    long, params = [3 + n % 700 for n in range(300)], SamplingParams(max_new_tokens=8, ignore_eos=True)
    with LLM("demo", **{name: value for name, value in TIGHT.items() if name != "vram_limit"}) as alone:
        wanted = alone.generate(long, params)[0].token_ids
    for turn in range(2):
        with load("lru", kv_disk=f"{tmp_path}:1", **TIGHT) as llm:
            unsettled(llm, turn)
            for _ in range(3):
                assert llm.generate(long, params)[0].token_ids == wanted
            pages = llm.loop.pages
            assert isinstance(pages, LentPages)
            pages._close(1)
            assert llm.generate(long, params)[0].token_ids == wanted
            if turn:
                assert llm.loop.disk is not None
                assert llm.loop.disk.restored > 0
