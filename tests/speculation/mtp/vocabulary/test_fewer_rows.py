"""Guesses among the first tokens of a vocabulary: text is that without drafts, and they are the best of these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mtp_models import Twin
from mtp_runs import OPTIONS, always, opened, prompt

from headrace import LLM, OptionError, SamplingParams
from headrace.engine.bandwidth_model.machine_file import parse
from headrace.engine.ledger.guesses import Guesses
from headrace.engine.ledger.passes import CPU_DRAM, GPU_HBM
from headrace.engine.planning.options import Options
from headrace.engine.planning.own_layer import draft_rows
from headrace.engine.planning.plan import make
from headrace.engine.speculation.mtp.drafter import MtpDrafter
from headrace.engine.speculation.vocabulary import expected
from headrace.engine.terminal.generate_report import byte_table, run_json
from headrace.loaders import model_source

With, Twins = Callable[..., Path], Callable[[str], Twin]
VOCAB, FIRST = 160, 60
LAST = draft_rows.last_rows(VOCAB)
ABLE = [*range(FIRST), *range(VOCAB - LAST, VOCAB)]
PROMPTS = [prompt(41, 1), prompt(37, 2), prompt(80, 3)]
HOW = [
    SamplingParams(max_new_tokens=40, ignore_eos=True),
    SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.9, top_p=0.95, seed=11),
    SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.7, seed=2, repetition_penalty=1.3),
]


def told(drafter: MtpDrafter) -> list[list[int]]:
    """Tokens of the drafts from now on."""
    found: list[list[int]] = []
    draft_all = drafter.draft_all

    def asked(many: Any) -> Any:
        said = draft_all(many)
        found.extend(one.tokens for one in said if one is not None)
        return said

    drafter.draft_all = asked  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen3_next", "deepseek_v3"])
def test_text_is_that_without(variant: str, with_mtp: With) -> None:
    assert LAST > 0
    with LLM(str(with_mtp(variant)), **OPTIONS, speculate="off") as llm:
        plain = [[llm.generate([one], how)[0].token_ids for one in PROMPTS] for how in HOW]
    with opened(with_mtp(variant), draft_vocabulary=FIRST) as llm:
        said = told(always(llm))
        for how, texts in zip(HOW, plain, strict=True):
            assert [llm.generate([one], how)[0].token_ids for one in PROMPTS] == texts
            assert [one.token_ids for one in llm.generate(PROMPTS, how)] == texts
    tokens = {token for one in said for token in one}
    assert tokens <= {*ABLE}
    assert len(tokens) > 10


def test_a_guess_is_the_best_of_the_tokens_it_may_be(with_mtp: With, twin: Twins) -> None:
    """Held against the twin, of which the other logits are left out."""
    with opened(with_mtp("qwen3_moe"), draft_vocabulary=str(FIRST)) as llm:
        drafter = always(llm, 1)
        asked: list[tuple[list[int], int]] = []
        draft_all = drafter.draft_all

        def seen(many: Any) -> Any:
            said = draft_all(many)
            asked.extend((list(one.tokens), d.tokens[0]) for (one, _), d in zip(many, said, strict=True) if d)
            return said

        drafter.draft_all = seen  # type: ignore[method-assign]
        llm.generate([PROMPTS[0]], HOW[0])
    layer = twin("qwen3_moe")
    assert len(asked) > 10
    for text, token in asked:
        logits = layer.logits(layer.states(text[1:], layer.trunk(text)[:-1])[-1])
        able = torch.tensor(ABLE)
        assert logits[token] >= logits[able].max() - 2e-3


RAM, GPU = "ddr5-6000-2ch, 64gb, 16cores", "rtx-3090, ddr5-6000-2ch, 64gb, 16cores"
PLACES: list[tuple[dict[str, Any], str, str]] = [
    ({}, RAM, "auto"),
    ({"device": "simulated", "cpu_moe": True, "handoff": "eager"}, GPU, "cpu-moe"),
    ({"device": "simulated", "placement": "gpu", "handoff": "eager"}, GPU, "gpu"),
]


@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize(("where", "machine", "placement"), PLACES, ids=["RAM", "experts in RAM", "GPU"])
def test_bytes_of_a_guess_are_those_of_the_plan(
    variant: str, where: dict[str, Any], machine: str, placement: str, with_mtp: With
) -> None:
    """To the byte, at every context, of guesses of one token; the first of a draft takes in more. Beside a GPU too,
    where the layer lies with attention."""
    path, found = with_mtp(variant), dict[int, Guesses]()
    with opened(path, draft_vocabulary=FIRST, kv_format="bf16", **where) as llm:
        drafter = always(llm, 4)
        one_pass = drafter._pass

        def watched(many: Any, wants_logits: bool = True) -> Any:
            counts, before = [one.waits for one in many], drafter.made
            out = one_pass(many, wants_logits)
            if counts == [1] and wants_logits:
                found[many[0].mine.computed] = drafter.made - before
            return out

        drafter._pass = watched  # type: ignore[method-assign]
        with llm.ledger.recording() as passes:
            llm.generate([PROMPTS[0]], HOW[0])
        assert sum((one.guesses for one in passes), Guesses()) == drafter.made
        assert drafter.made.mean_rows == FIRST
        shown = run_json(llm, llm.generate([PROMPTS[1]], HOW[0]))["speculation"]
        assert shown["guesses"] > 10
        assert shown["guess_rows"] == FIRST * shown["guesses"]
        names, *_, decode = (list(column.cells) for column in byte_table(llm.ledger).columns)
        rows = dict(zip(names, decode, strict=True))
        assert rows["guessed among"] == f"{FIRST} tokens"
        assert rows["bytes a guess"] != "-"
    assert len(found) > 20

    def planned(context: int, vocabulary: int | str) -> int:
        options = Options(speculate="mtp", context=context, prompt=8, draft_vocabulary=vocabulary, quant="f32",
                          placement=placement)  # fmt: skip
        plan = make(model_source.find(str(path)), parse(machine), options)
        assert plan.own_drafts is not None
        return plan.own_drafts.guess_bytes

    for context, guess in found.items():
        assert guess == Guesses(1, FIRST, planned(context, FIRST))
    assert planned(context, "all") - guess.nbytes == 4 * llm.spec.hidden * (VOCAB - FIRST - LAST)


def test_seconds_before_a_guess_was_made_are_those_of_the_memory_that_holds_the_layer(with_mtp: With) -> None:
    """Beside a GPU too: as a plan says them, whose passes have keys to read and a cost of their own besides."""
    for machine, placement, memory in ((RAM, "auto", CPU_DRAM), (GPU, "cpu-moe", GPU_HBM)):
        hardware = parse(machine)
        with opened(with_mtp("qwen3_moe")) as llm:
            own, head, spec = llm.parts.weights.mtp, llm.parts.weights.head, llm.spec
            assert own is not None
            rest_s, row_s = expected.seconds(own, head, spec.moe.top_k, hardware, memory)
        token_s = {}
        for rows in (FIRST, "all"):
            options = Options(speculate="mtp", context=1, prompt=1, draft_vocabulary=rows, quant="f32",
                              placement=placement)  # fmt: skip
            plan = make(model_source.find(str(with_mtp("qwen3_moe"))), hardware, options)
            assert plan.own_drafts is not None
            token_s[rows] = plan.own_drafts.token_s - hardware.fixed.mid
        assert row_s * (VOCAB - FIRST - LAST) == pytest.approx(token_s["all"] - token_s[FIRST], rel=0.01)
        assert rest_s + row_s * VOCAB == pytest.approx(token_s["all"], rel=0.05)


def test_what_is_no_number_of_tokens_is_refused(with_mtp: With) -> None:
    with pytest.raises(OptionError, match="draft_vocabulary is 0; give a whole number of at least 1, or auto or all"):
        opened(with_mtp("qwen3_moe"), draft_vocabulary=0)
    with pytest.raises(OptionError, match="draft_vocabulary is 'most'"):
        opened(with_mtp("qwen3_moe"), draft_vocabulary="most")


def test_more_than_there_are_are_all(with_mtp: With) -> None:
    with opened(with_mtp("qwen3_moe"), draft_vocabulary=10 * VOCAB) as llm:
        drafter = always(llm)
        llm.generate([PROMPTS[0]], HOW[0])
        assert drafter.made.mean_rows == VOCAB
        assert not drafter.vocabulary.head.left_out()
