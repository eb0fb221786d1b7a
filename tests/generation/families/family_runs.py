"""What tests of single families run: prompts, models in float32, and two checks that hold for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from headrace import LLM, SamplingParams

Checkpoints = Callable[[str], Path]
Oracle = Callable[[str], Any]
GREEDY = SamplingParams(max_new_tokens=48, ignore_eos=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Tokens of the small models."""
    return torch.randint(3, 160, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def load(path: Path, **options: object) -> LLM:
    """In float32."""
    return LLM(str(path), dtype="float32", **options)


def check_greedy(variant: str, kernels: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """The oracle's tokens, alone and in a batch, in chunks of 16."""
    prompts = [prompt(41, 1), prompt(9, 2)]
    with load(checkpoints(variant), kernels=kernels, prefill_chunk=16) as llm:
        together = [one.token_ids for one in llm.generate(prompts, GREEDY)]
        assert [llm.generate([one], GREEDY)[0].token_ids for one in prompts] == together
    for one, said in zip(prompts, together, strict=True):
        assert said == tiny.oracle_greedy(oracle(variant), one, said)


def check_taken_over(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """The oracle's tokens by C++ kernels, alone and in a batch, in chunks of 16; a beginning of 64 is taken over."""
    prompts = [prompt(90, 1), prompt(9, 2)]
    with load(checkpoints(variant), prefill_chunk=16) as llm:
        together = [one.token_ids for one in llm.generate(prompts, GREEDY)]
        again = [llm.generate([one], GREEDY)[0] for one in prompts]
        assert [one.token_ids for one in again] == together
        assert again[0].reused_tokens == 64
    for one, said in zip(prompts, together, strict=True):
        assert said == tiny.oracle_greedy(oracle(variant), one, said)


def check_fused(path: Path) -> None:
    """The fused call, and layer by layer as beside a GPU: the same bits."""
    with load(path) as llm:
        fused = llm.logits(prompt(50))
    with load(path) as llm:
        llm.parts.decoder.choose = lambda _, choice: choice
        assert torch.equal(llm.logits(prompt(50)), fused)
