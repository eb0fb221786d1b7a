"""Text with drafts is the text without them: every kind of layer, greedy and sampled, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from family_runs import prompt
from scripted_drafts import Script, speculate

from headrace import LLM, SamplingParams

Checkpoints = Callable[[str], Path]
# Grouped-query attention, sinks and windows, latents, an indexer, gated delta nets, convolutions, state spaces,
# compressed entries.
FAMILIES = [
    "qwen3_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "qwen3_next", "qwen3_5_moe_text", "lfm2_moe",
    "granitemoehybrid", "nemotron_h", "kimi_linear", "gemma4_text", "llama4_text", "mimo_v2_flash",
    "deepseek_v4",
]  # fmt: skip
HOW = {
    "greedy": SamplingParams(max_new_tokens=48, ignore_eos=True),
    "sampled": SamplingParams(max_new_tokens=48, ignore_eos=True, temperature=0.9, top_p=0.95, seed=11),
    "penalties": SamplingParams(
        max_new_tokens=48, ignore_eos=True, temperature=0.7, seed=2, repetition_penalty=1.3, presence_penalty=0.4,
        frequency_penalty=0.2, min_tokens=20,
    ),
    "likelihoods": SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.6, seed=5, logprobs=3),
}  # fmt: skip


PROMPTS = [prompt(41, 1), prompt(37, 2), prompt(63, 3)]


RUNS = [(one, "cpu") for one in FAMILIES] + [("qwen3_next", "reference")]
# How tokens are drawn knows no layers: all of it where tokens have pages alone and where they have states; the least
# and the most of it for the other kinds; the least for the plain twins, which take a hundred times as long.
WITH_ALL = ("qwen3_moe", "qwen3_5_moe_text")


def ways(family: str, kernels: str) -> list[str]:
    if kernels == "reference":
        return ["greedy"]
    return list(HOW) if family in WITH_ALL else ["greedy", "penalties"]


def named(run: object) -> str | None:
    return " ".join(run) if isinstance(run, tuple) else None


each_run = pytest.mark.parametrize("llm", RUNS, ids=named, indirect=True, scope="module")
each_way = pytest.mark.parametrize(
    ("llm", "how"), [(run, how) for run in RUNS for how in ways(*run)], ids=named, indirect=["llm"], scope="module"
)


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Iterator[LLM]:
    family, kernels = request.param
    with LLM(
        str(checkpoints(family)), kernels=kernels, dtype="float32", max_context=192, max_sequences=3, speculate="off",
        no_measure=True,
    ) as llm:  # fmt: skip
        yield llm


def without(llm: LLM, how: SamplingParams) -> list[list[int]]:
    llm.loop.drafts = llm.loop.scheduler.drafts = None
    return [llm.generate([one], how)[0].token_ids for one in PROMPTS]


@each_way
def test_alone_and_together(how: str, llm: LLM) -> None:
    params = HOW[how]
    plain = without(llm, params)
    script = Script([p + said for p, said in zip(PROMPTS, plain, strict=True)], 0.75, llm.spec.vocab)
    speculate(llm, script)
    with llm.ledger.recording() as passes:
        alone = [llm.generate([one], params)[0].token_ids for one in PROMPTS]
    assert alone == plain
    drafted, accepted = sum(p.drafted for p in passes), sum(p.accepted for p in passes)
    assert 0 < accepted < drafted
    decode = [p for p in passes if p.phase == "decode"]
    assert sum(p.gained for p in decode) == sum(map(len, plain)) - len(plain)
    assert len(decode) + accepted == sum(map(len, plain)) - len(plain)
    assert [one.token_ids for one in llm.generate(PROMPTS, params)] == plain


@each_run
def test_likelihoods_are_those_without(llm: LLM) -> None:
    llm.loop.drafts = llm.loop.scheduler.drafts = None
    plain = llm.generate([PROMPTS[0]], HOW["likelihoods"])[0]
    speculate(llm, Script([PROMPTS[0] + plain.token_ids], 0.8, llm.spec.vocab))
    found = llm.generate([PROMPTS[0]], HOW["likelihoods"])[0]
    assert len(found.logprobs) == len(plain.logprobs)
    for one, other in zip(found.logprobs, plain.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


@each_run
def test_a_chat_goes_on_from_what_drafts_left(llm: LLM) -> None:
    """Pages and states that a next turn takes over are those of the tokens that held."""
    params = HOW["greedy"]
    said = without(llm, params)[0]
    turn = PROMPTS[0] + said + prompt(9, 7)
    expected = llm.generate([turn], params)[0].token_ids
    with LLM(str(llm.parts.checkpoint.directory), kernels=llm.parts.kernels, dtype="float32", max_context=192,
             max_sequences=3, speculate="off", no_measure=True) as fresh:  # fmt: skip
        speculate(fresh, Script([PROMPTS[0] + said, turn + expected], 0.6, llm.spec.vocab, seed=4))
        assert fresh.generate([PROMPTS[0]], params)[0].token_ids == said
        again = fresh.generate([turn], params)[0]
    assert again.reused_tokens >= 32
    assert again.token_ids == expected
