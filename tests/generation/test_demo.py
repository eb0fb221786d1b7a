"""The packaged model: transformers reads it and says the same, and quantising it costs no more than the limits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from headrace import LLM, SamplingParams
from headrace.engine.bench.quality.perplexity import perplexity
from headrace.kernels.isa import available_isas
from headrace.loaders.hub.locate import DEMO_DIRECTORY

HELD_OUT = Path(__file__).parents[2] / "demo" / "heldout.txt"
MAX_BYTES = 18_000_000
PROMPTS = [
    "In the beginning", "And it came to pass", "It is a truth universally acknowledged", "Behold,", "My dear",
    "And the LORD said unto Moses,", "She was", "The children of Israel", "He had been", "Elizabeth", "Jesus answered",
    "Now when the morning was come,", "I cannot", "The house", "Thou shalt not", "Mr. Knightley", "\n", "And David",
    "There was a man in the land of", "After dinner",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    """transformers' model, in float32."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_DIRECTORY, dtype=torch.float32, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.fixture(scope="module")
def reference() -> LLM:
    return LLM("demo", kernels="reference", dtype="float32")


@pytest.fixture(scope="module")
def said(reference: LLM) -> dict[str, list[int]]:
    """What the reference says to every prompt, all in one batch."""
    results = reference.generate(PROMPTS, SamplingParams(max_new_tokens=64, ignore_eos=True))
    return {prompt: result.token_ids for prompt, result in zip(PROMPTS, results, strict=True)}


@pytest.fixture(scope="module")
def held_out(reference: LLM) -> list[int]:
    return reference.encode(HELD_OUT.read_text(encoding="utf-8"))[:2048]


@pytest.fixture(scope="module")
def exact(reference: LLM, held_out: list[int]) -> float:
    """Held-out perplexity of the reference kernels in float32."""
    return perplexity(reference, held_out).value


def test_it_is_a_real_small_moe_model() -> None:
    spec = LLM("demo").spec
    assert spec.family == "qwen3_moe"
    assert len(spec.layers) >= 6
    assert all(spec.is_moe)
    assert spec.moe.experts >= 16
    assert spec.moe.top_k == 4
    assert sum(p.stat().st_size for p in DEMO_DIRECTORY.iterdir()) <= MAX_BYTES


def test_tokenizer_equals_transformers(reference: LLM) -> None:
    oracle = AutoTokenizer.from_pretrained(DEMO_DIRECTORY)
    for prompt in PROMPTS:
        assert reference.encode(prompt) == oracle(prompt)["input_ids"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_transformers(
    prompt: str, said: dict[str, list[int]], reference: LLM, teacher: PreTrainedModel
) -> None:
    assert said[prompt] == tiny.oracle_greedy(teacher, reference.encode(prompt), said[prompt])
    assert len(said[prompt]) == 64


def test_logits_equal_transformers(reference: LLM, teacher: PreTrainedModel, held_out: list[int]) -> None:
    ids = held_out[:300]
    assert (reference.logits(ids) - tiny.oracle_logits(teacher, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("expert_format", "limit"), [("bf16", 0.005), ("q8_0", 0.01), ("q4_0", 0.04)], ids=str)
def test_perplexity_stays_within_its_limit(
    expert_format: str, limit: float, isa: str, exact: float, held_out: list[int]
) -> None:
    """Fast kernels, everything else in bfloat16. The limit is on the rise; a fall by as much would be a mistake too."""
    llm = LLM("demo", expert_format=expert_format, dtype="bfloat16")
    llm.parts.ops.context = dataclasses.replace(llm.parts.context, isa=isa)
    got = perplexity(llm, held_out).value
    assert abs(got / exact - 1) < limit, f"{expert_format} on {isa}: perplexity {got:.3f}, float32 {exact:.3f}"


def test_the_held_out_text_is_predicted_far_better_than_by_chance(exact: float) -> None:
    """Without learning it would be near the vocabulary's 2,048; from the frequencies of single tokens, hundreds."""
    assert exact < 40


@pytest.mark.slow
def test_the_card_states_the_perplexity_that_is_measured(reference: LLM) -> None:
    """Of the weights as shipped, in float32, on the held-out file in whole windows of 512 tokens."""
    card = (DEMO_DIRECTORY / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| bfloat16, as shipped"))
    stated = float(row.split("|")[4].split()[0])
    ids = reference.encode(HELD_OUT.read_text(encoding="utf-8"))
    value = perplexity(LLM("demo", dtype="float32"), ids[: len(ids) // 512 * 512], 512).value
    assert value == pytest.approx(stated, abs=0.005)


def test_no_path_of_a_machine_is_in_the_shipped_files() -> None:
    for path in DEMO_DIRECTORY.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        assert "/root" not in text
        assert "/tmp" not in text
        assert "/home" not in text
