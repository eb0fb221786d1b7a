"""Drafts wherever experts lie; where they cannot be; what is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_in_gpu
from scripted_drafts import Script, speculate
from terminal import folded

from headrace import LLM, HeadraceError, OptionError, SamplingParams
from headrace.engine.bandwidth_model.profile import Profile
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.config import EngineConfig
from headrace.engine.cuda_graphs import signals
from headrace.engine.cuda_graphs.signals import VARIANTS, Trial
from headrace.engine.generation.schedule import scheduler
from headrace.engine.generation.sequence import Sequence
from headrace.engine.speculation.drafter import Draft

Run = Callable[..., tuple[int, str, str]]
Checkpoints = Callable[[str], Path]
PROMPT = [(7 * i) % 150 + 3 for i in range(40)]
PARAMS = SamplingParams(max_new_tokens=40, ignore_eos=True)


@pytest.mark.parametrize(
    "where",
    [
        {"placement": "cpu"},
        {"placement": "disk", "expert_cache": "50%"},
        {"device": "simulated", "cpu_moe": True, "handoff": "eager"},
        {"device": "simulated", "placement": "gpu", "handoff": "eager"},
        {"device": "simulated", "policy": "lru", "expert_cache": "40%", "handoff": "eager"},
        {"placement": "cpu", "kv_format": "bf16"},
        {"placement": "cpu", "prefill_chunk": 4},
    ],
    ids=str,
)
def test_text_is_the_same_wherever_experts_lie(where: dict[str, Any], checkpoints: Checkpoints) -> None:
    with LLM(str(checkpoints("qwen3_moe")), dtype="float32", **where, max_context=96, max_sequences=2, speculate="off",
             no_measure=True) as llm:  # fmt: skip
        plain = llm.generate([PROMPT, PROMPT[5:]], PARAMS)
        texts = [PROMPT + plain[0].token_ids, PROMPT[5:] + plain[1].token_ids]
        speculate(llm, Script(texts, 0.7, llm.spec.vocab))
        with llm.ledger.recording() as passes:
            found = llm.generate([PROMPT, PROMPT[5:]], PARAMS)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    assert sum(one.accepted for one in passes) > 10


def test_room_that_runs_out(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are put off and come again while others have drafts, which take no page that somebody needs."""
    monkeypatch.setattr(scheduler, "WINDOW", 1)
    prompts = [[(i + 3 * n) % 150 + 3 for i in range(40)] for n in range(4)]
    options: dict[str, Any] = {"dtype": "float32", "max_context": 160, "max_sequences": 4, "no_measure": True}
    params = SamplingParams(max_new_tokens=90, ignore_eos=True)
    with LLM(str(checkpoints("qwen3_moe")), **options, speculate="off") as llm:
        plain = [llm.generate([one], params)[0].token_ids for one in prompts]
    with LLM(str(checkpoints("qwen3_moe")), **options, speculate="off") as llm:
        speculate(llm, Script([p + said for p, said in zip(prompts, plain, strict=True)], 0.8, llm.spec.vocab))
        llm.loop.pages.free = llm.loop.pages.free[:11]  # of 20 that all of them need at once
        found = [one.token_ids for one in llm.generate(prompts, params)]
        assert llm.loop.scheduler.preemptions > 0
    assert found == plain


def test_by_itself_nothing_is_drafted_for_what_the_caches_hold(profile: Profile) -> None:
    with LLM("demo", max_context=256) as llm:
        assert llm.predictions.profile is not None
        llm.generate("And the LORD said", SamplingParams(max_new_tokens=60, ignore_eos=True))
        assert llm.ledger.summary("decode").passes == 59


class Now(Script):
    """Says something of every other token only."""

    def draft(self, sequence: Sequence, most: int) -> Draft | None:
        return super().draft(sequence, most) if len(sequence.tokens) % 2 else None


def test_graphs_take_passes_without_drafts(library: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself nothing is drafted there. Where it is asked for, passes with drafts run by hand between graphs."""
    monkeypatch.setattr(signals, "probe", lambda *_: {name: Trial(name=name, us=5.0) for name in VARIANTS})
    stand_in_gpu.install(monkeypatch, library)
    options: dict[str, Any] = {"device": "simulated", "cpu_moe": True, "handoff": "memop", "max_context": 96}
    with LLM("demo", **options) as llm:
        assert llm.parts.graphed is not None
        assert llm.loop.drafts is None
        plain = llm.generate([PROMPT, PROMPT[5:]], PARAMS)
    texts = [PROMPT + plain[0].token_ids, PROMPT[5:] + plain[1].token_ids]
    with LLM("demo", **options, speculate="lookup") as llm:
        graphed = llm.parts.graphed
        assert graphed is not None
        speculate(llm, Now(texts, 0.8, llm.spec.vocab))
        steps: list[int] = []
        forward = graphed.forward
        monkeypatch.setattr(graphed, "forward", lambda *given: steps.append(1) or forward(*given))
        with llm.ledger.recording() as passes:
            found = llm.generate([PROMPT, PROMPT[5:]], PARAMS)
        decode = [one for one in passes if one.phase == "decode"]
        assert 0 < len(steps) == sum(one.drafted == 0 for one in decode) < len(decode)
        assert sum(one.accepted for one in decode) > 10
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]


def test_a_trace_has_no_refused_tokens(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with LLM(str(checkpoints("qwen3_moe")), trace=tmp_path / "a.trace", max_context=96) as llm:
        assert llm.loop.drafts is None
    for asked in ({"speculate": "lookup"}, {"speculate": "demo"}, {"mtp": "a.gguf"}, {"draft_vocabulary": "all"}):
        with pytest.raises(OptionError, match=r"nothing is drafted meanwhile: leave .* out, or trace"):
            EngineConfig(trace=tmp_path / "a.trace", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["off", "lookup"])
def test_options_about_models_that_guess_need_one(how: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"draft_vocabulary says .*, and with speculate {how} none guesses"):
        EngineConfig(speculate=how, draft_vocabulary=8192)
    with pytest.raises(OptionError, match=f"mtp is the file of the layer that drafts, and speculate is '{how}'"):
        EngineConfig(speculate=how, mtp=tmp_path / "m.gguf")
    assert EngineConfig(speculate="demo", draft_vocabulary=8192).draft_vocabulary == 8192
    status, _, err = run("plan", "Qwen3-30B-A3B", "--speculate", how, "--draft-vocabulary", 8192)
    assert status == 1
    assert f"with --speculate {how} none guesses: give --speculate mtp" in folded(err)


def test_options_that_change_nothing_are_said(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """By itself nothing guesses here: nothing was measured."""
    asked = {"max_context": 96, "no_measure": True, "mtp": tmp_path / "m.safetensors", "draft_vocabulary": 80}
    with LLM(str(checkpoints("qwen3_moe")), **asked) as llm:  # type: ignore[arg-type]
        assert any("m.safetensors is not loaded by speculate 'auto' here" in note for note in llm.notes)
        assert any("draft_vocabulary 80 changes nothing" in note for note in llm.notes)
    path = str(checkpoints("qwen3_moe"))
    with LLM(path, max_context=96, no_measure=True, speculate=path, draft_vocabulary=80) as llm:
        assert not any("draft_vocabulary" in note for note in llm.notes)


def test_random_weights_take_no_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="mtp is a file of weights, and these are random"):
        random_llm(str(checkpoints("qwen3_moe")), max_context=96, speculate="mtp", mtp=tmp_path / "m.safetensors")


def test_what_is_no_drafter_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(OptionError, match="speculate is empty"):
        EngineConfig(speculate="")
    with pytest.raises(HeadraceError, match="nowhere/model"):
        LLM(str(checkpoints("qwen3_moe")), speculate="nowhere/model", offline=True)


def test_it_is_said_where_nothing_was_drafted(run: Run) -> None:
    said = "no draft was expected to pay; the first is tried behind 32 tokens of text"
    for how, is_said in (("lookup", True), ("auto", False), ("off", False)):
        err = folded(run("generate", "demo", "Water", "-n", 4, "--speculate", how)[2])
        assert (f"nothing was drafted with --speculate {how}: {said}" in err) == is_said
    status, out, err = run("bench", "demo", "-p", 0, "-n", 8, "-r", 1, "--speculate", "lookup")
    assert status == 0, err
    assert f"nothing was drafted in tg8: {said}" in folded(out + err)


def test_the_closing_table_and_json_say_what_drafts_were(run: Run, tmp_path: Path) -> None:
    ledger = tmp_path / "run.jsonl"
    asked = ("generate", "demo", "And the LORD said unto Moses", "-n", 80, "--ignore-eos", "--no-measure")
    status, out, err = run(*asked, "--speculate", "lookup", "--ledger", ledger)
    assert status == 0, err
    assert out == run(*asked, "--speculate", "off")[1]
    for row in ("drafted", "accepted", "bytes with drafts", "bytes without"):
        assert row in err
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    drafted = sum(line.get("drafted", 0) for line in lines)
    accepted = sum(line.get("accepted", 0) for line in lines)
    assert drafted >= accepted > 0
    found = json.loads(run(*asked, "--speculate", "lookup", "--json")[1])
    decode = [line for line in lines if line["phase"] == "decode"]
    assert found["speculation"]["drafted"] == drafted
    assert found["speculation"]["accepted"] == accepted
    assert found["speculation"]["tokens_per_pass"] == pytest.approx(79 / len(decode), abs=1e-3)
    assert found["speculation"]["bytes_per_token_without"] > 0
    assert "speculation" not in json.loads(run(*asked, "--speculate", "off", "--json")[1])
