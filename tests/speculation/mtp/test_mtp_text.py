"""Text with drafts of a model's own layer is the text without, and what comes true is what must."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mtp_models import Twin, add, agreeing, layer_tensors
from mtp_runs import OPTIONS, always, drafter_of, opened, prompt, watched

from headrace import LLM, SamplingParams
from headrace.engine.generation.schedule import scheduler

With, Twins, Checkpoints = Callable[..., Path], Callable[[str], Twin], Callable[[str], Path]
FAMILIES = ["qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "deepseek_v3", "glm4_moe"]
PROMPTS = [prompt(41, 1), prompt(37, 2), prompt(80, 3), prompt(33, 4)]
HOW = {
    "greedy": SamplingParams(max_new_tokens=40, ignore_eos=True),
    "sampled": SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.9, top_p=0.95, seed=11),
    "penalties": SamplingParams(
        max_new_tokens=40, ignore_eos=True, temperature=0.7, seed=2, repetition_penalty=1.3, presence_penalty=0.4
    ),
}


@pytest.mark.parametrize("variant", FAMILIES)
def test_text_is_that_without(variant: str, with_mtp: With) -> None:
    with LLM(str(with_mtp(variant)), **OPTIONS, speculate="off", prefill_chunk=32) as llm:
        plain = {name: [llm.generate([one], how)[0].token_ids for one in PROMPTS] for name, how in HOW.items()}
        assert llm.parts.weights.mtp is None
    with opened(with_mtp(variant), prefill_chunk=32) as llm:
        drafter = always(llm)
        for name, how in HOW.items():
            with llm.ledger.recording() as passes:
                assert [llm.generate([one], how)[0].token_ids for one in PROMPTS] == plain[name]
                assert [one.token_ids for one in llm.generate(PROMPTS, how)] == plain[name]
            assert sum(one.drafted for one in passes) > 100
        assert not drafter.known
        assert llm.loop.pages.available == len(llm.loop.pages.owners)


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen3_next"])
def test_what_a_layer_that_agrees_says_comes_true(variant: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Of a model whose layers add nothing the next token follows from the last alone, which the layer is made to say,
    too: every token that is drafted holds."""
    shutil.copytree(checkpoints(variant), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    own = safetensors.torch.load_file(path)
    still = {n: torch.zeros_like(t) for n, t in own.items() if n.endswith(("o_proj.weight", "out_proj.weight"))}
    still |= {n: torch.zeros_like(t) for n, t in own.items() if "down_proj" in n}
    safetensors.torch.save_file(own | still, path, {"format": "pt"})
    layer = agreeing(layer_tensors(variant, checkpoints(variant)), variant)
    layer["enorm.weight"] = torch.full_like(layer["enorm.weight"], 0.0 if variant == "qwen3_next" else 1.0)
    layer["shared_head.norm.weight"] = own["model.norm.weight"].clone()
    add(variant, tmp_path / "model", layer)
    how = SamplingParams(max_new_tokens=41, ignore_eos=True)
    with LLM(str(tmp_path / "model"), **OPTIONS, speculate="off") as llm:
        plain = [llm.generate([one], how)[0].token_ids for one in PROMPTS]
    with opened(tmp_path / "model") as llm:
        always(llm, 4)
        with llm.ledger.recording() as passes:
            assert llm.generate([PROMPTS[0]], how)[0].token_ids == plain[0]
        decode = [one for one in passes if one.phase == "decode"]
        assert len(decode) == 8  # of 5 tokens each
        assert [one.accepted for one in decode] == [one.drafted for one in decode] == [4] * 8
        with llm.ledger.recording() as passes:
            assert [one.token_ids for one in llm.generate(PROMPTS, how)] == plain
        assert sum(one.accepted for one in passes) == sum(one.drafted for one in passes) > 100


def test_what_comes_true_is_what_the_twin_foresees(with_mtp: With, twin: Twins) -> None:
    """Tokens that are accepted are those at the start of its guesses that the model itself says."""
    how = SamplingParams(max_new_tokens=60, ignore_eos=True)
    with opened(with_mtp("qwen3_moe")) as llm:
        said = watched(always(llm))
        with llm.ledger.recording() as passes:
            text = PROMPTS[0] + llm.generate([PROMPTS[0]], how)[0].token_ids
    expected = []
    for one in said:
        truth, right = text[len(one.text) :], 0
        guess = twin("qwen3_moe").draft(one.text, len(one.tokens))
        while right < len(guess) and guess[right] == truth[right]:
            right += 1
        expected.append(right)
    assert [one.accepted for one in passes if one.drafted] == expected


def test_by_itself_it_drafts_where_tokens_come_true(checkpoints: Checkpoints, with_mtp: With) -> None:
    """Without known seconds tokens are drafted that are right with one half or more; a layer of noise soon is not."""
    how = SamplingParams(max_new_tokens=100, ignore_eos=True)
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        plain = llm.generate([PROMPTS[0]], how)[0].token_ids
    with opened(with_mtp("qwen3_moe")) as llm:
        with llm.ledger.recording() as passes:
            assert llm.generate([PROMPTS[0]], how)[0].token_ids == plain
        drafter = drafter_of(llm)
    drafted = [one.drafted for one in passes if one.phase == "decode"]
    assert drafted[0] > 0
    assert sum(drafted[20:]) <= 1
    assert drafter.vocabulary.rest_s > 0
    assert drafter.vocabulary.row_s > 0


def test_room_that_runs_out(with_mtp: With, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are put off and come again: the layer begins anew with pages that are others."""
    monkeypatch.setattr(scheduler, "WINDOW", 1)
    prompts = [[(i + 3 * n) % 150 + 3 for i in range(40)] for n in range(4)]
    how = SamplingParams(max_new_tokens=90, ignore_eos=True)
    with LLM(str(with_mtp("qwen3_moe")), **OPTIONS, speculate="off") as llm:
        plain = [llm.generate([one], how)[0].token_ids for one in prompts]
    with opened(with_mtp("qwen3_moe")) as llm:
        drafter = always(llm)
        llm.loop.pages.free = llm.loop.pages.free[:11]  # of 20 that all of them need at once
        with llm.ledger.recording() as passes:
            found = [one.token_ids for one in llm.generate(prompts, how)]
        assert llm.loop.scheduler.preemptions > 0
        assert not drafter.known
    assert found == plain
    assert sum(one.drafted for one in passes) > 50


def test_a_chat_goes_on_from_what_drafts_left(with_mtp: With) -> None:
    how = HOW["greedy"]
    for variant in ("qwen3_moe", "qwen3_next"):
        with LLM(str(with_mtp(variant)), **OPTIONS, speculate="off") as llm:
            said = llm.generate([PROMPTS[0]], how)[0].token_ids
            turn = PROMPTS[0] + said + prompt(9, 7)
            expected = llm.generate([turn], how)[0].token_ids
        with opened(with_mtp(variant)) as llm:
            always(llm)
            assert llm.generate([PROMPTS[0]], how)[0].token_ids == said
            again = llm.generate([turn], how)[0]
        assert again.reused_tokens >= 32
        assert again.token_ids == expected


def test_a_stream_that_is_closed_leaves_nothing(with_mtp: With) -> None:
    with opened(with_mtp("qwen3_moe")) as llm:
        drafter = always(llm)
        stream = llm.stream(PROMPTS[0], HOW["greedy"])
        for _ in range(3):
            next(iter(stream))
        assert drafter.known
        stream.close()
        assert not drafter.known
        assert llm.loop.pages.available == len(llm.loop.pages.owners)


@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v32", "qwen3_next"])
def test_keys_that_are_not_there_make_guesses_worse_and_no_other_text(variant: str, with_mtp: With) -> None:
    """Pages may come without the layer's keys: whatever memory holds there."""
    with opened(with_mtp(variant)) as llm:
        drafter = always(llm)
        plain = llm.generate([PROMPTS[2]], HOW["greedy"])[0].token_ids
        for layer in drafter.layer.decoder.cache.layers:
            for one in vars(layer).values():
                if isinstance(one, torch.Tensor) and one.numel():
                    one.fill_(float("nan"))
        again = llm.generate([PROMPTS[2]], HOW["greedy"])[0]
    assert again.reused_tokens >= 64
    assert again.token_ids == plain
