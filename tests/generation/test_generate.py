"""The public API as a program uses it: generate, stream, stop, reuse a prefix, run out of room."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import tiny
import tiny_tokenizer
import torch
from cores import CORES
from family_runs import prompt as ids
from refusals import edit_json
from transformers import PreTrainedModel

from headrace import LLM, ContextOverflow, OptionError, SamplingParams, TokenizerError
from headrace.engine.ledger.passes import Pass
from headrace.engine.model.kv_cache import PAGE

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]


def greedy(new: int, **params: object) -> SamplingParams:
    return SamplingParams(max_new_tokens=new, ignore_eos=True, **params)


@pytest.fixture(scope="module")
def llm(checkpoints: Checkpoints) -> LLM:
    return LLM(str(checkpoints("qwen3_moe")), dtype="float32")


def test_stream_gives_what_generate_gives(llm: LLM) -> None:
    chunks = list(llm.stream(ids(9), greedy(12)))
    assert [c.token_id for c in chunks] == llm.generate([ids(9)], greedy(12))[0].token_ids
    assert [c.finish_reason for c in chunks] == [None] * 11 + ["length"]


def test_a_single_prompt_counts_as_a_list_of_one(llm: LLM) -> None:
    assert llm.generate(ids(5), greedy(3))[0].token_ids == llm.generate([ids(5)], greedy(3))[0].token_ids


def test_an_end_token_ends_and_is_the_last_token(llm: LLM) -> None:
    tokens = llm.generate([ids(9)], greedy(12))[0].token_ids
    stop = SamplingParams(max_new_tokens=12, stop_token_ids=(tokens[5],), ignore_eos=True)
    result = llm.generate([ids(9)], stop)[0]
    assert result.token_ids == tokens[: tokens.index(tokens[5]) + 1]
    assert result.finish_reason == "stop"


@pytest.mark.parametrize(
    ("config", "generation", "settings", "older", "ends"),
    [
        ([7, 9], [9, 11], {}, {}, {7, 9, 11}),
        (2, 2, {"eos_token": "<model>"}, {}, {2, 4}),
        (2, None, {"eos_token": {"content": "<user>"}}, {"eos_token": "<model>"}, {2, 3, 4}),
        (None, None, {"eos_token": "</s>", "eot_token": "<user>"}, {}, {2, 3}),
        (None, [5], {}, {"eos_token": "</s>"}, {2, 5}),
    ],
)
def test_every_file_may_name_end_tokens(
    config: Any, generation: Any, settings: dict[str, Any], older: dict[str, Any], ends: set[int], tmp_path: Path
) -> None:
    tiny.build("mixtral", tmp_path)
    edit_json(tmp_path / "config.json", eos_token_id=config)
    tiny_tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    assert {*LLM(str(tmp_path)).parts.eos_ids} == ends


@pytest.mark.parametrize("stop", [("</s>",), ("never", "</s>"), ("</s>", "<user>")])
def test_a_special_token_as_stop_string_stops(stop: tuple[str, ...], talker: Path) -> None:
    with LLM(str(talker), kernels="reference", max_context=64) as llm:
        params = SamplingParams(max_new_tokens=5, stop=stop, ignore_eos=True)
        request = llm.admission.request([5, 6], params)
        assert 2 in request.sequence.params.stop_token_ids
        assert request.sequence.params.stop == tuple(text for text in stop if not text.startswith("<"))


@pytest.mark.parametrize(("text", "starts"), [("<s>[INST] hi", 1), ("[INST] hi", 1), ("<s><s>hi", 2), ("a<s>", 2)])
def test_a_start_token_that_the_text_spells_is_not_doubled(text: str, starts: int, tmp_path: Path) -> None:
    tiny.build("mixtral", tmp_path)
    tiny_tokenizer.save(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", add_bos_token=True)
    with LLM(str(tmp_path), kernels="reference", max_context=64) as llm:
        ids = llm.encode(text)
    assert ids[0] == 1
    assert ids[:3].count(1) == starts


def test_a_request_costs_the_same_however_large_the_vocabulary_is(
    monkeypatch: pytest.MonkeyPatch, talker: Path
) -> None:
    """The tokenizer is written out, or its tokens listed, at most once for all requests."""
    with LLM(str(talker), kernels="reference", max_context=64) as llm:
        assert llm.tokenizer is not None
        llm.generate([[5, 6]], greedy(1))
        core = MagicMock(wraps=llm.tokenizer._core)
        monkeypatch.setattr(llm.tokenizer, "_core", core)
        llm.generate([[5, 6]] * 3, SamplingParams(max_new_tokens=2, stop=("x", "</s>")))
    assert {name for name, *_ in core.mock_calls} <= {"id_to_token", "token_to_id", "decode", "decode_batch"}


def test_streams_that_are_read_in_turns_do_not_mix(llm: LLM) -> None:
    alone = [llm.generate([ids(n, n)], greedy(new))[0].token_ids for n, new in ((9, 12), (5, 7), (40, 5))]
    one, two = llm.stream(ids(9, 9), greedy(12)), llm.stream(ids(5, 5), greedy(7))
    got: list[list[int]] = [[], []]
    got[0] += [next(one).token_id for _ in range(3)]
    got[1] += [next(two).token_id for _ in range(2)]
    between = llm.generate([ids(40, 40)], greedy(5))[0].token_ids
    for one_chunk in one:
        got[0].append(one_chunk.token_id)
    for two_chunk in two:
        got[1].append(two_chunk.token_id)
    assert [*got, between] == alone
    assert one.result.finish_reason == two.result.finish_reason == "length"
    assert not llm.loop.requests


def test_an_error_at_the_end_of_a_pass_costs_the_others_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [llm.generate([ids(n, n)], greedy(8))[0].token_ids for n in (9, 5)]
    one, two = llm.stream(ids(9, 9), greedy(8)), llm.stream(ids(5, 5), greedy(8))
    got = [[next(one).token_id, next(one).token_id], [next(two).token_id]]

    def full_disk(done: Pass) -> None:
        raise OptionError("full")

    with monkeypatch.context() as patch:
        patch.setattr(llm.ledger, "write", full_disk)
        with pytest.raises(OptionError, match="full"):
            llm.generate([ids(4)], greedy(3))
    got[0] += [c.token_id for c in one]
    got[1] += [c.token_id for c in two]
    assert got == alone


def test_several_threads_may_use_one_model(llm: LLM) -> None:
    prompts = [ids(n, n) for n in (3, 20, 33, 8)]
    alone = [llm.generate([p], greedy(12))[0].token_ids for p in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: llm.generate([p], greedy(12))[0].token_ids, prompts))
    assert together == alone


def test_a_group_that_ran_may_run_again(llm: LLM) -> None:
    group = llm.batch([ids(4)], greedy(3))
    group.run()
    group.run()
    assert len(group.results[0].token_ids) == 3
    assert not llm.loop.scheduler.waiting


def test_an_error_in_a_pass_leaves_no_request_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    free = llm.loop.pages.available

    def broken(*inputs: object) -> torch.Tensor:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(llm.parts.decoder, "forward", broken)
        with pytest.raises(RuntimeError, match="broken"):
            llm.generate([ids(4), ids(6)], greedy(8))
    assert llm.loop.pages.available == free
    assert not llm.loop.requests
    assert len(llm.generate([ids(4)], greedy(3))[0].token_ids) == 3


def test_a_batch_larger_than_the_machine_takes_runs_in_turns(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("mixtral")), dtype="float32", max_sequences=2, max_context=40)
    prompts = [ids(n, n) for n in (3, 20, 7, 1, 30)]
    alone = [llm.generate([p], greedy(8))[0].token_ids for p in prompts]
    assert [r.token_ids for r in llm.generate(prompts, greedy(8))] == alone
    assert max(len(p.sequences) for p in llm.ledger.passes) == 2


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    results = llm.generate([ids(4), ids(6)], [greedy(3), greedy(7, temperature=1.0, seed=5)])
    assert [len(r.token_ids) for r in results] == [3, 7]
    with pytest.raises(OptionError, match="2 sampling parameters for 1"):
        llm.generate([ids(4)], [greedy(3), greedy(3)])


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_a_known_prefix_is_reused_and_changes_nothing(kernels: str, checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("qwen3_moe")), dtype="float32", kernels=kernels)
    fresh = LLM(str(checkpoints("qwen3_moe")), dtype="float32", kernels=kernels)
    first = llm.generate([ids(50)], greedy(30))[0]
    longer = ids(50) + first.token_ids + ids(5, 1)
    again = llm.generate([longer], greedy(10))[0]
    assert again.reused_tokens == (50 + 29) // PAGE * PAGE  # the last token of a completion is not in the cache
    assert again.token_ids == fresh.generate([longer], greedy(10))[0].token_ids
    assert sum(p.tokens for p in again.ledger if p.phase == "prefill") == len(longer) - again.reused_tokens


def test_prompts_of_a_batch_share_a_prefix_that_was_answered_before(llm: LLM) -> None:
    system = ids(70, 9)
    llm.generate([system], greedy(1))
    results = llm.generate([system + ids(3, n) for n in range(3)], greedy(4))
    assert [r.reused_tokens for r in results] == [64, 64, 64]


def test_closing_a_stream_gives_its_pages_back(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("mixtral")), max_context=64, max_sequences=1)
    free = llm.loop.pages.available
    for _ in range(3):
        stream = llm.stream(ids(20), greedy(40))
        next(stream)
        assert llm.loop.pages.available < free
        stream.close()
        assert stream.result.finish_reason == "interrupted"
        assert llm.loop.pages.available == free
    assert not llm.loop.scheduler.running


def test_a_stream_that_was_never_started_leaves_nothing_behind(checkpoints: Checkpoints) -> None:
    llm = LLM(str(checkpoints("mixtral")), max_context=64, max_sequences=1)
    llm.stream(ids(20), greedy(40)).close()
    assert not llm.loop.scheduler.waiting
    assert len(llm.generate([ids(20)], greedy(4))[0].token_ids) == 4


def test_context_is_used_to_the_last_token_and_not_beyond(checkpoints: Checkpoints, oracle: Oracle) -> None:
    llm = LLM(str(checkpoints("mixtral")), dtype="float32", max_context=50)
    result = llm.generate([ids(40)], greedy(11))[0]
    assert result.token_ids == tiny.oracle_greedy(oracle("mixtral"), ids(40), result.token_ids)
    with pytest.raises(ContextOverflow, match=r"40 prompt tokens and 12 new ones are 52, the context holds 50.*11"):
        llm.generate([ids(40)], greedy(12))
    with pytest.raises(ContextOverflow, match=r"prompt has 51 tokens, the context holds 50.*256"):
        llm.generate([ids(51)], greedy(1))


def test_an_interrupted_group_keeps_what_there_is(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llm.generate([ids(4), ids(6)], greedy(8))
    group, step = llm.batch([ids(4), ids(6)], greedy(8)), llm.loop.step
    passes = iter(range(4))

    def interrupted() -> None:
        if next(passes, None) is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(llm.loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        group.run()
    assert [r.finish_reason for r in group.results] == ["interrupted"] * 2
    assert [r.token_ids for r in group.results] == [r.token_ids[:4] for r in whole]
    assert not llm.loop.scheduler.running


def test_logits_do_not_disturb_the_cache(llm: LLM) -> None:
    before = llm.loop.pages.available
    one, two = llm.logits(ids(65)), llm.logits(ids(65))
    assert torch.equal(one, two)
    assert llm.loop.pages.available == before


def test_prompts_that_make_no_sense_are_refused(llm: LLM) -> None:
    with pytest.raises(OptionError, match="empty"):
        llm.generate([[]])
    with pytest.raises(OptionError, match=r"token id 160 .* 160 tokens"):
        llm.generate([[5, 160]])
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        llm.generate(["text"])


def test_the_cores_of_tests_are_those_of_this_machine() -> None:
    """Not the one thread that contexts of this process have."""
    found = subprocess.run(
        [sys.executable, "-c", "from headrace.kernels.context import CORES; print(CORES)"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(found.stdout) == CORES


def test_the_threads_change_no_token(checkpoints: Checkpoints) -> None:
    """One, what there is by default where nobody asks for fewer, and more than this machine may have."""
    prompts = [ids(n, n) for n in (7, 40, 2)]
    said = []
    for threads in (1, CORES, 3):
        llm = LLM(str(checkpoints("qwen2_moe")), threads=threads)
        assert llm.parts.context.threads == threads
        said.append([one.token_ids for one in llm.generate(prompts, greedy(20))])
    assert said[0] == said[1] == said[2]


def test_a_sampled_run_repeats_with_its_seed_and_thread_count(checkpoints: Checkpoints) -> None:
    params = greedy(30, temperature=0.9, top_p=0.9, seed=11)
    runs = [LLM(str(checkpoints("olmoe")), threads=2).generate([ids(7)], params)[0].token_ids for _ in range(2)]
    assert runs[0] == runs[1]
