"""Random weights have a layer for multi-token prediction where it is asked for, so that its cost can be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mtp_runs import always, prompt
from refusals import refused

from headrace import ConfigError, SamplingParams
from headrace.engine.bench.random_weights import random_llm
from headrace.engine.memory.required import MTP
from headrace.engine.placement.placement import Tier

Checkpoints = Callable[[str], Path]
OPTIONS: dict[str, Any] = {
    "max_context": 128, "max_sequences": 2, "no_measure": True, "expert_format": "bf16", "dense_format": "bf16",
}  # fmt: skip


@pytest.mark.parametrize("variant", ["qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_its_weights_are_noise_and_it_drafts(variant: str, checkpoints: Checkpoints) -> None:
    with random_llm(str(checkpoints(variant)), speculate="mtp", **OPTIONS) as llm:
        assert llm.parts.weights.mtp is not None
        assert llm.parts.memory_plan.memory[Tier.CPU].needed[MTP] == llm.parts.weights.mtp.nbytes
        assert all(
            one.any()
            for name, one in llm.parts.weights.named().items()
            if name.startswith("mtp.") and not name.endswith("choice_bias")
        )
        always(llm)
        with llm.ledger.recording() as passes:
            llm.generate([prompt(40)], SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert sum(one.drafted for one in passes) > 20


def test_a_model_that_has_none_is_refused(checkpoints: Checkpoints) -> None:
    with refused(ConfigError, "layers for multi-token prediction are not run for gemma4"):
        random_llm(str(checkpoints("gemma4_text")), speculate="mtp", **OPTIONS).close()
