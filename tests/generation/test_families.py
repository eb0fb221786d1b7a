"""Every family against transformers: with the reference in float32 the same logits and the same greedy tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from headrace import LLM, SamplingParams
from headrace.engine.model import decoder as decoder_module
from headrace.kernels.context import ISA
from headrace.kernels.decoder_layer import mlp
from headrace.kernels.passes.tally import Choice

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], PreTrainedModel]
TOLERANCE = 1e-4  # twice that with a delta rule or a state space, whose sums transformers makes in another order
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 160, (length,), generator=generator).tolist()


def tolerance(variant: str) -> float:
    """A state that every token changes magnifies rounding: of these variants both are 1e-4 from float64."""
    recurrent = (
        "qwen3_next",
        "qwen3_5",
        "kimi_linear",
        "bailing",
        "granitemoehybrid",
        "nemotron_h",
        "glm5_next",
        "qwen4_exp",
    )
    return TOLERANCE * (2 if variant.startswith(recurrent) else 1)


def load(path: Path, kernels: str = "reference", **options: object) -> LLM:
    return LLM(str(path), kernels=kernels, dtype="float32", **options)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_logits_equal_transformers(variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    ids = prompt(70)
    got = load(checkpoints(variant), kernels, prefill_chunk=32).logits(ids)
    wanted = tiny.oracle_logits(oracle(variant), ids)
    assert got.shape == wanted.shape == (70, 160)
    assert got.dtype == torch.float32
    assert wanted.abs().max() > 1, "logits near zero would hide mistakes"
    assert (got - wanted).abs().max() < tolerance(variant)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_batched_greedy_tokens_equal_transformers(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """Prompts of different lengths in one batch, in chunks, against transformers one by one."""
    prompts = [prompt(41, 1), prompt(1, 2), prompt(17, 3)]
    results = load(checkpoints(variant), prefill_chunk=16).generate(prompts, GREEDY)
    for one, result in zip(prompts, results, strict=True):
        assert result.token_ids == tiny.oracle_greedy(oracle(variant), one, result.token_ids)
        assert result.finish_reason == "length"


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_prefill_equals_step_by_step(variant: str, kernels: str, checkpoints: Checkpoints) -> None:
    ids = prompt(33, 4)
    whole = load(checkpoints(variant), kernels).logits(ids)
    steps = load(checkpoints(variant), kernels, prefill_chunk=1).logits(ids)
    assert (whole - steps).abs().max() < tolerance(variant)


@pytest.mark.parametrize(("dtype", "isa"), [("float32", ISA), ("bfloat16", "portable")])
def test_fast_kernels_give_the_same_tokens_alone_and_in_a_batch(dtype: str, isa: str, checkpoints: Checkpoints) -> None:
    """Where tiles take over from some number of tokens on (AMX, bfloat16 and below), a prompt is rounded otherwise
    alone than in a batch; everywhere else the batch changes nothing."""
    llm = LLM(str(checkpoints("qwen3_moe")), dtype=dtype)
    llm.parts.ops.context = dataclasses.replace(llm.parts.context, isa=isa)
    check_alone_and_together(llm)


def check_alone_and_together(llm: LLM) -> None:
    prompts = [prompt(n, n) for n in (5, 31, 64, 2)]
    together = llm.generate(prompts, GREEDY)
    for one, result in zip(prompts, together, strict=True):
        assert llm.generate([one], GREEDY)[0].token_ids == result.token_ids


class Recorder:
    """Puts the choice of experts of one model into another, and keeps what every MoE layer gave."""

    def __init__(self, llm: LLM, choices: list[Choice] | None = None) -> None:
        self.llm = llm
        self.choices: list[Choice] = []
        self.outputs: list[torch.Tensor] = []
        self.forced = choices
        llm.parts.decoder.choose = self.route

    def route(self, index: int, choice: Choice) -> Choice:
        choice = choice if self.forced is None else self.forced[len(self.choices)]
        self.choices.append(choice)
        return choice

    def logits(self, ids: list[int], patch: pytest.MonkeyPatch) -> None:
        decoder = self.llm.parts.decoder
        experts, dense = decoder._experts, mlp

        def after_experts(*args: Any) -> Any:
            """A layer's experts, with a shared one: its output is known when all of it is added up."""
            in_layer.append(True)
            found = experts(*args)
            in_layer.pop()
            self.outputs.append(found[0])
            return found

        def after_mlp(*args: Any) -> torch.Tensor:
            found = dense(*args)
            if not in_layer:
                self.outputs.append(found)
            return found

        in_layer: list[bool] = []
        with patch.context() as here:
            here.setattr(decoder, "_experts", after_experts)
            here.setattr(decoder_module, "mlp", after_mlp)
            self.llm.logits(ids)


# The MLP beside the experts has three more. Scores are products of normed queries and keys, d = 40 numbers near 1 that
# were rounded, and are not divided by the root of d: both put them off by 2^-8 sqrt(d / 12), and weights by as much of
# themselves.
ROUNDINGS = {"gemma4_text": 9 + 2 * 40 / 12}
# Tiles of bf16 round what is multiplied too: what goes into qkv, o, gate and up, and down. Of the MLP beside the
# experts two more; and queries and keys are off by as much again.
TILE_ROUNDINGS = {"gemma4_text": 4 + 2 + 2 * 40 / 12}


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "gemma4_text"])
def test_bf16_layers_are_within_rounding_of_float32_when_routing_is_forced(
    variant: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, built_in_tiles: None
) -> None:
    """bfloat16 has 8 significant bits: a rounding changes a number by at most 2^-8 of itself. On the way to a layer's
    output lie one rounding for the embedding and six for each layer passed (qkv, cache, o, gate, up, down). Their
    errors have random signs, so they add in squares: relative error in the 2-norm under 2^-8 * sqrt(1 + 6 * layers)."""
    ids = prompt(48, 5)
    exact = load(checkpoints(variant))
    wanted = Recorder(exact)
    wanted.logits(ids, monkeypatch)
    fast = LLM(str(checkpoints(variant)), dtype="bfloat16")
    of_a_layer = ROUNDINGS.get(variant, 6)
    if "bf16" in fast.parts.context.tile_tokens:
        of_a_layer += TILE_ROUNDINGS.get(variant, 4)
    got = Recorder(fast, wanted.choices)
    got.logits(ids, monkeypatch)
    assert len(got.outputs) == len(wanted.outputs) == len(exact.spec.layers)
    for depth, (a, b) in enumerate(zip(got.outputs, wanted.outputs, strict=True)):
        error = float((a - b).norm() / b.norm())
        assert error < 2**-8 * (1 + of_a_layer * (depth + 1)) ** 0.5, f"layer {depth}: relative error {error:.2e}"
        assert error > 0, "the fast model is not the float32 one"
