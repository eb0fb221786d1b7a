"""Layers that look at other tokens in other ways than full attention: what they keep, what a pass reads of it, and that
sequences do not disturb each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.engine.generation.state_slots import StateSlots
from headrace.engine.ledger.pass_bytes import CacheSizes, cache_sizes
from headrace.engine.model.kv_cache import PAGE, States

Checkpoints = Callable[[str], Path]
FEW = SamplingParams(max_new_tokens=6, ignore_eos=True)
NEW_KINDS = ["gpt_oss", "deepseek_v2", "deepseek_v3", "qwen3_next", "qwen3_5_moe_text"]


def load(path: Path, **options: object) -> LLM:
    return LLM(str(path), kernels="reference", dtype="float32", **options)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 160, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_window_is_read_as_far_as_it_reaches() -> None:
    """A layer of 10 bytes a token that sees all, and one of 6 that sees 8; two sequences."""
    cache = CacheSizes(layers=((6, 8), (10, None)), state=0)
    spans = [(1, 30), (4, 20)]
    written = 5 * 16
    assert cache.moved(spans, logits=True) == written + 10 * 50 + 6 * (8 + 11)
    assert cache.moved(spans, logits=False) == written + 6 * (8 + 11), "the last layer does not attend"
    assert cache.moved([(3, 5)], logits=True) == 3 * 16 + 5 * 16, "a window that nobody reaches"


def test_a_state_is_read_and_written_by_each_sequence() -> None:
    cache = CacheSizes(layers=((0, None), (4, None)), state=100)
    assert cache.moved([(1, 9), (1, 1)], logits=True) == 2 * 4 + 4 * 10 + 2 * 2 * 100


@pytest.mark.parametrize("variant", NEW_KINDS)
def test_cache_bytes_are_those_of_the_tensors(variant: str, checkpoints: Checkpoints) -> None:
    with load(checkpoints(variant), max_context=64, max_sequences=2) as llm:
        cache, sizes = llm.parts.decoder.cache, cache_sizes(llm.spec, torch.float32)
        by_slot: list[torch.Tensor] = []
        paged: list[torch.Tensor] = []
        for layer in cache.layers:
            (by_slot if isinstance(layer, States) else paged).extend(vars(layer).values())
        assert sum(tensor.nbytes for tensor in paged) == sizes.token * PAGE * cache.pages
        assert sum(tensor.nbytes for tensor in by_slot) == StateSlots.count(2) * sizes.state


@pytest.mark.parametrize("variant", NEW_KINDS)
def test_the_same_prompt_again_gives_the_same(variant: str, checkpoints: Checkpoints) -> None:
    """With pages taken over, or with a slot that another sequence had."""
    ids = prompt(70, 3)
    with load(checkpoints(variant), max_context=128, max_sequences=2) as llm:
        first, other = (llm.generate([one], FEW)[0].token_ids for one in (ids, prompt(40, 4)))
        assert llm.generate([ids], FEW)[0].token_ids == first
        assert llm.generate([[*ids[:64], *prompt(9, 5)]], FEW)[0].token_ids != first
        assert llm.generate([prompt(40, 4), ids], FEW)[1].token_ids == first
        assert llm.generate([prompt(40, 4)], FEW)[0].token_ids == other


@pytest.mark.parametrize("where", [{"cpu_moe": True}, {"n_cpu_moe": 2}, {"placement": "gpu"}], ids=str)
def test_states_beside_a_gpu(where: dict[str, object], checkpoints: Checkpoints) -> None:
    """What plays its part has slots and kept copies of states, to which slots and pieces of a prompt come by a copy."""
    prompts = [prompt(70, 3), prompt(9, 4)]
    options = dict(max_context=128, max_sequences=2, prefill_chunk=48)
    with (
        load(checkpoints("qwen3_next"), **options) as plain,
        load(checkpoints("qwen3_next"), device="simulated", **where, **options) as split,
    ):
        for prompts in ([prompt(70, 3), prompt(9, 4)], [[*prompt(70, 3)[:64], *prompt(5, 6)]]):
            wanted, found = ([one.token_ids for one in llm.generate(prompts, FEW)] for llm in (plain, split))
            assert found == wanted
        kept = split.parts.decoder.cache
        assert isinstance(kept.layers[0], States)
        for llm in (plain, split):
            assert llm.ledger.passes[-6].tokens == 5, "a kept state was taken over"
