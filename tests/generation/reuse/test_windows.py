"""Layers over a window with pages of their own: every token and logit as where all pages stay, however a prompt is cut,
shared, interrupted and found again; and no more pages than a window, a chunk and what is kept behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from family_runs import prompt

from headrace import LLM, SamplingParams
from headrace.engine.generation.schedule import scheduler
from headrace.engine.memory.kv_budget import PageBytes
from headrace.engine.model.kv_cache import PAGE, PageTable
from headrace.engine.planning.options import Options
from headrace.engine.planning.plan import make
from headrace.engine.server.page import about_model
from headrace.loaders import model_source

Checkpoints = Callable[[str], Path]
VARIANTS = ["gpt_oss", "gemma4_text", "llama4_text-interleaved", "mimo_v2_flash"]
FEW = SamplingParams(max_new_tokens=6, ignore_eos=True)


def load(path: Path, **options: Any) -> LLM:
    chosen = {"dtype": "float32", "max_context": 256, "max_sequences": 3, "prefill_chunk": PAGE, "no_measure": True}
    return LLM(str(path), **{**chosen, **options})


@contextmanager
def one_pool() -> Iterator[None]:
    """Models that are loaded meanwhile keep all pages of all layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PageBytes, "pools", lambda *_: ())
        yield


def load_whole(path: Path, **options: Any) -> LLM:
    with one_pool():
        llm = load(path, **options)
    assert not llm.loop.windows.pools
    return llm


def ask(llm: LLM, ids: list[int], params: SamplingParams = FEW) -> tuple[list[int], int]:
    (found,) = llm.generate([ids], params)
    return found.token_ids, found.reused_tokens


def check_nothing_is_held(llm: LLM) -> None:
    for pool in llm.loop.windows.pools:
        assert pool.table.available == pool.pages - 1
        assert sum(pool.table.owners) == pool.table.owners[0] == 1
        assert not set(pool.table.free) & set(pool.table.digest_of), "free, and known"
    assert llm.loop.pages.available == len(llm.loop.pages.owners)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_logits_are_those_of_a_cache_that_keeps_all(variant: str, kernels: str, checkpoints: Checkpoints) -> None:
    """Of 230 tokens, windows of 8, in chunks of several sizes."""
    ids = prompt(230, 1)
    for chunk in (7, PAGE, 100):
        with load_whole(checkpoints(variant), kernels=kernels, prefill_chunk=chunk) as whole:
            wanted = whole.logits(ids)
        with load(checkpoints(variant), kernels=kernels, prefill_chunk=chunk, max_sequences=2) as llm:
            assert llm.loop.windows.pools, "no pool of its own"
            assert torch.equal(llm.logits(ids), wanted)
            check_nothing_is_held(llm)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kv_format", ["f32", "bf16"])
def test_tokens_of_a_batch_are_those_of_a_cache_that_keeps_all(
    variant: str, kv_format: str, checkpoints: Checkpoints
) -> None:
    """More prompts than run at once, some alike at their beginning; 90 new tokens of each, then all once more."""
    prompts = [prompt(n, n) for n in (150, 9, 64, 33, 100)]
    prompts += [[*prompts[0][:100], *prompt(30, 7)], prompts[2]]
    long = SamplingParams(max_new_tokens=90, ignore_eos=True)
    with load_whole(checkpoints(variant), kv_format=kv_format) as whole:
        wanted = [ask(whole, one, long)[0] for one in prompts]
    with load(checkpoints(variant), kv_format=kv_format) as llm:
        assert llm.loop.windows.pools
        assert [one.token_ids for one in llm.generate(prompts, long)] == wanted
        check_nothing_is_held(llm)
        again = llm.generate(prompts, long)
        assert [one.token_ids for one in again] == wanted
        assert any(one.reused_tokens for one in again)
        check_nothing_is_held(llm)


def test_keys_in_q8_0_too(tmp_path: Path) -> None:
    tiny.build("gpt_oss", tmp_path, head_dim=32)
    ids = prompt(200, 3)
    with load_whole(tmp_path, kv_format="q8_0") as whole:
        wanted = ask(whole, ids)
    with load(tmp_path, kv_format="q8_0") as llm:
        assert llm.loop.windows.pools
        assert ask(llm, ids) == wanted
        assert ask(llm, ids) == (wanted[0], 6 * PAGE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chat_goes_on_where_its_answer_ended(variant: str, checkpoints: Checkpoints) -> None:
    """The last window stays; so does that of the prompt's end, for another answer."""
    ids, long = prompt(100, 4), SamplingParams(max_new_tokens=80, ignore_eos=True)
    with load_whole(checkpoints(variant)) as whole:
        answer = ask(whole, ids, long)[0]
        chat = [*ids, *answer, *prompt(9, 5)]
        wanted = ask(whole, chat)
        assert wanted[1] == (len(ids) + len(answer) - 1) // PAGE * PAGE
        other = ask(whole, [*ids, 7])
    with load(checkpoints(variant)) as llm:
        assert ask(llm, ids, long) == (answer, 0)
        assert ask(llm, chat) == wanted
        assert ask(llm, [*ids, 7]) == other
        assert other[1] == 3 * PAGE


def fill(llm: LLM, pool: int = 0) -> None:
    """Other prompts, until no page of a pool is what it was."""
    before, table = list(llm.loop.windows.pools[pool].table.taken), llm.loop.windows.pools[pool].table
    seed = 1000
    while any(a == b for a, b in zip(before[1:], table.taken[1:], strict=True)):
        ask(llm, prompt(3 * PAGE + 2, seed))
        seed += 1


@pytest.mark.parametrize("variant", ["gpt_oss", "llama4_text-interleaved"])
def test_a_prefix_whose_window_is_gone_is_computed_again(variant: str, checkpoints: Checkpoints) -> None:
    ids = prompt(140, 6)
    with load(checkpoints(variant), max_sequences=4) as llm:
        wanted = ask(llm, ids)[0]
        fill(llm)
        known = llm.loop.pages.known(ids)
        assert len(known) == 4, "layers that see everything have forgotten it, too"
        left = llm.loop.windows.longest(known)
        assert left < 4
        assert ask(llm, ids) == (wanted, left * PAGE)
        assert ask(llm, ids) == (wanted, 4 * PAGE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_run_finds_the_last_window_on_disk(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Of 6 pages and the last window; behind an answer, too; and where files of a window are lost, less is found."""
    ids, long = prompt(6 * PAGE + 5, 12), SamplingParams(max_new_tokens=40, ignore_eos=True)
    with load_whole(checkpoints(variant)) as whole:
        answer = ask(whole, ids, long)[0]
    with load(checkpoints(variant), kv_disk=tmp_path) as llm:
        assert llm.loop.windows.pools
        assert ask(llm, ids, long)[0] == answer
    with load(checkpoints(variant), kv_disk=tmp_path) as later:
        assert ask(later, ids, long) == (answer, 6 * PAGE)
        check_nothing_is_held(later)
        assert later.loop.disk is not None
        in_window = sum(pool.seen_from(6) < 6 for pool in later.loop.windows.pools)
        assert later.loop.disk.restored == 6 + in_window
    chat = [*ids, *answer, 5]
    with load(checkpoints(variant), kv_disk=tmp_path) as later:
        assert ask(later, chat)[1] == (len(chat) - 2) // PAGE * PAGE
    for path in tmp_path.glob("*/*.window1"):
        path.unlink()
    with load(checkpoints(variant), kv_disk=tmp_path) as later:
        found, reused = ask(later, ids, long)
        assert found == answer
        chunk_begins = {"llama4_text-interleaved": 5 * PAGE}  # 160 is 32 chunks of 5: nothing before is seen
        assert reused == chunk_begins.get(variant, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_those_that_made_room_go_on(variant: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(60, 20 + n) for n in range(3)]
    long = SamplingParams(max_new_tokens=120, ignore_eos=True)
    with load_whole(checkpoints(variant)) as whole:
        wanted = [ask(whole, one, long)[0] for one in prompts]
    monkeypatch.setattr(scheduler, "WINDOW", 1)  # tokens that admission makes sure of
    with load(checkpoints(variant)) as llm:
        loop = llm.loop
        loop.pages = loop.scheduler.pages = PageTable(10)
        assert [one.token_ids for one in llm.generate(prompts, long)] == wanted
        assert loop.scheduler.preemptions > 0
        check_nothing_is_held(llm)


@pytest.mark.parametrize("variant", VARIANTS)
def test_several_answers_to_one_prompt(variant: str, checkpoints: Checkpoints) -> None:
    """The prompt is computed once, also where the first answer is far ahead when the last begins."""
    ids = prompt(130, 30)
    each = [SamplingParams(max_new_tokens=50, temperature=1.0, seed=n, ignore_eos=True) for n in range(7)]
    with load_whole(checkpoints(variant)) as whole:
        wanted = [ask(whole, ids, one)[0] for one in each]
    with load(checkpoints(variant)) as llm:
        found = llm.generate([ids] * 7, each)
        assert [one.token_ids for one in found] == wanted
        assert [one.reused_tokens for one in found] == [0, *[4 * PAGE] * 6]


def test_the_plan_has_the_bytes_of_the_engine(tmp_path: Path) -> None:
    """Of a context that is many windows long, for one sequence and for several, in each format."""
    for variant in VARIANTS:
        folder = tmp_path / variant
        tiny.build(variant, folder, max_position_embeddings=4096)
        for sequences, kv_format in ((1, "f32"), (3, "bf16")):
            options = {"max_context": 2048, "max_sequences": sequences, "prefill_chunk": 512}
            with load(folder, kv_format=kv_format, **options) as llm:
                budget, cache = llm.parts.kv_budget, llm.parts.decoder.cache
                (window, pages), in_all = budget.windows[0], sequences * 2048 // PAGE
                assert pages == window.pool(2048, sequences, 512) == sequences * 4 + 512 // PAGE + 1
                assert budget.pages == in_all
                counts = {0: in_all, 1: pages}
                held = sum(part.nbytes * n for kind, n in counts.items() for part in cache.page_parts(0, kind))
                assert budget.kv_bytes == held
            plan = make(
                model_source.find(str(folder)), None, Options(kv_format=kv_format, context=2048, batch=sequences)
            )
            assert sum(plan.demand.cache) == held
            assert plan.kept <= held


def test_a_long_prompt_holds_a_window_and_a_chunk(tmp_path: Path) -> None:
    """5000 tokens in chunks of 64: never more than 2 pages that are written and those behind them."""
    tiny.build("gpt_oss", tmp_path, max_position_embeddings=8192)
    with load(tmp_path, max_context=5100, max_sequences=1, prefill_chunk=2 * PAGE) as llm:
        (pool,) = llm.loop.windows.pools
        assert pool.pages - 1 == 4 + 2
        most, allocate = [0], pool.table.allocate

        def counted(count: int) -> list[int]:
            found = allocate(count)
            most[0] = max(most[0], sum(pool.table.owners) - 1)
            return found

        pool.table.allocate = counted  # type: ignore[method-assign]
        ask(llm, prompt(5000, 40))
        assert most[0] == 2 + 2
        assert len(llm.loop.pages.known(prompt(5000, 40))) == 5000 // PAGE
        check_nothing_is_held(llm)


def test_short_contexts_have_one_pool(checkpoints: Checkpoints) -> None:
    with load(checkpoints("gpt_oss"), max_context=64) as llm:
        assert not llm.parts.kv_budget.windows
        assert all(layer.kind == 0 for layer in llm.parts.decoder.cache.layers)


def test_scarce_memory_lets_fewer_run_at_once(checkpoints: Checkpoints) -> None:
    """Room for the windows of one sequence alone: others wait, and all get the same."""
    prompts, long = [prompt(50, n) for n in range(3)], SamplingParams(max_new_tokens=60, ignore_eos=True)
    with load(checkpoints("gpt_oss")) as llm:
        wanted = [one.token_ids for one in llm.generate(prompts, long)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.engine.memory.kv_budget.CACHE_SHARE", 0.0)
        with load(checkpoints("gpt_oss")) as llm:
            assert [pages for _, pages in llm.parts.kv_budget.windows] == [4 + 1 + 1]
            with llm.ledger.recording() as passes:
                assert [one.token_ids for one in llm.generate(prompts, long)] == wanted
            assert max(len(one.sequences) for one in passes) == 1


def test_the_page_counts_windows(checkpoints: Checkpoints) -> None:
    with load(checkpoints("gpt_oss")) as llm:
        service = type("Served", (), {"llm": llm})()
        pool = llm.loop.windows.pools[0]
        stream = llm.stream(prompt(100, 1), FEW)
        next(stream)
        counts = about_model.pages(service)
        assert counts["windows"] == pool.pages - 1
        assert counts["windows_used"] == 3, "from token 61 on, 32 behind the window and 8 in it"
        stream.close()
        assert about_model.pages(service)["windows_used"] == 0
