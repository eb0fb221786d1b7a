"""Several models in one process: each computes in its own context, whatever the others are told meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick
import torch

from headrace import LLM, SamplingParams
from headrace.engine.measure import tile_thresholds
from headrace.kernels.context import Context
from headrace.kernels.isa import available_isas

PROMPTS = ["In the beginning", "And it came to pass, when"]
PARAMS = SamplingParams(max_new_tokens=5, ignore_eos=True, temperature=0.8, seed=5)
WAYS: dict[str, dict[str, Any]] = {
    "int8, one thread": {"kernels": "cpu", "threads": 1},
    "bf16, two threads": {"kernels": "cpu", "threads": 2, "cpu_activations": "bf16"},
    "reference": {"kernels": "reference", "threads": 2},
}


@pytest.fixture(autouse=True)
def _torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(model: str | Path = "demo", **options: Any) -> LLM:
    return LLM(str(model), expert_format="q4_0", max_context=96, max_sequences=2, **options)


def on_isa(isa: str, **options: Any) -> LLM:
    llm = load(**options)
    llm.parts.ops.context = dataclasses.replace(llm.parts.context, isa=isa)  # type: ignore[attr-defined]
    return llm


def logits(llm: LLM) -> torch.Tensor:
    return llm.logits(llm.encode(PROMPTS[1]))


def interleaved(models: list[LLM]) -> list[list[list[int]]]:
    """What each generates while they take turns, token by token, prompt after prompt."""
    found: list[list[list[int]]] = [[] for _ in models]
    for prompt in PROMPTS:
        streams = [llm.stream(prompt, PARAMS) for llm in models]
        rows: list[list[int]] = [[] for _ in models]
        for chunks in zip(*streams, strict=True):
            for row, chunk in zip(rows, chunks, strict=True):
                row.append(chunk.token_id)
        for many, row in zip(found, rows, strict=True):
            many.append(row)
    return found


def alone(model: Path, **options: Any) -> tuple[list[list[int]], torch.Tensor]:
    with load(model, **options) as llm:
        (found,) = interleaved([llm])
        return found, logits(llm)


def test_models_that_take_turns_give_what_each_gives_alone(talker: Path) -> None:
    wanted = {name: alone(talker, **options) for name, options in WAYS.items()}
    models = {name: load(talker, **options) for name, options in WAYS.items()}
    found = dict(zip(models, interleaved(list(models.values())), strict=True))
    for name, llm in models.items():
        assert found[name] == wanted[name][0], name
        assert torch.equal(logits(llm), wanted[name][1]), name
    assert not torch.equal(wanted["int8, one thread"][1], wanted["bf16, two threads"][1]), "they round differently"


def test_each_keeps_its_settings_while_others_come_and_go() -> None:
    one = load(threads=1)
    before, expected = one.parts.context, logits(one)
    with load(threads=2, cpu_activations="bf16") as other:
        assert (other.parts.context.threads, other.parts.context.activations) == (2, "bf16")
        assert (one.parts.context, one.parts.context.threads, one.parts.context.activations) == (before, 1, "int8")
        assert torch.equal(logits(one), expected)
        logits(other)
        assert torch.equal(logits(one), expected)
    assert one.parts.context == before
    assert torch.equal(logits(one), expected)


def test_torch_computes_with_the_threads_of_the_model_whose_pass_it_is(talker: Path) -> None:
    seen: list[int] = []
    reference, fast = load(talker, kernels="reference", threads=2), load(talker, threads=2)
    for llm in (reference, fast):
        forward = llm.parts.decoder.forward

        def noted(inputs: Any, *rest: Any, forward: Any = forward) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            result: torch.Tensor = forward(inputs, *rest)
            return result

        llm.parts.decoder.forward = noted  # type: ignore[method-assign]
    for llm in (reference, fast, reference):
        llm.logits([1, 2, 3])
        llm.generate([[1]], SamplingParams(max_new_tokens=1, ignore_eos=True))
    assert seen == [2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("isa", available_isas())
def test_another_instruction_set_beside_the_best(isa: str) -> None:
    best = load(threads=2)
    expected = logits(best)
    other = on_isa(isa, threads=1)
    wanted = logits(on_isa(isa, threads=2))
    assert torch.equal(logits(other), wanted), "threads change no bit"
    assert torch.equal(logits(best), expected)
    assert interleaved([best, other]) == [interleaved([best])[0], interleaved([other])[0]]


def test_measuring_disturbs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(threads=1)
    expected, before = logits(llm), llm.parts.context
    quick.calibrations(monkeypatch)
    tile_thresholds.measure(Context(threads=2), ["q8_0"])
    assert llm.parts.context == before
    assert torch.equal(logits(llm), expected)
