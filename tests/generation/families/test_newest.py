"""Mistral-Large-4: what positions do to queries and turns is learned, and some layers turn nothing. However a pass is
cut, computed and shared, the logits are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from family_runs import GREEDY, Checkpoints, Oracle, check_fused, load, prompt

from headrace import LLM
from headrace.errors import ConfigError, OptionError
from headrace.loaders.families import spec_of
from headrace.loaders.families.config_reader import ConfigReader

VARIANTS = ("mistral_large4", "mistral_large4-shared")


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_over_48_steps(variant: str, checkpoints: Checkpoints, oracle: Oracle) -> None:
    """With the C++ kernels, alone and in a batch, in chunks of 16; a beginning of 64 tokens is taken over."""
    prompts = [prompt(90, 1), prompt(9, 2)]
    with load(checkpoints(variant), prefill_chunk=16) as llm:
        together = [one.token_ids for one in llm.generate(prompts, GREEDY)]
        again = [llm.generate([one], GREEDY)[0] for one in prompts]
        assert [one.token_ids for one in again] == together
        assert again[0].reused_tokens == 64
    for one, said in zip(prompts, together, strict=True):
        assert said == tiny.oracle_greedy(oracle(variant), one, said)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_layers_at_once_are_their_ops(variant: str, checkpoints: Checkpoints) -> None:
    check_fused(checkpoints(variant))


@pytest.mark.parametrize(
    ("variant", "changes", "said"),
    [
        ("mistral_large4", {"kv_source_layers": [0, 0, 2, 3, 4]}, "kv_source_layers is .*, supported is the list of 0"),
        ("mistral_large4", {"no_rope_layers": [1, 0]}, "no_rope_layers is .*, supported is a list of 5 times 1"),
    ],
)
def test_what_nobody_computes_is_refused(
    variant: str, changes: dict[str, Any], said: str, checkpoints: Checkpoints
) -> None:
    values = json.loads((checkpoints(variant) / "config.json").read_text()) | changes
    with pytest.raises(ConfigError, match=said):
        spec_of(ConfigReader(values, "config.json"))


def refused(path: Path) -> str:
    """What is said to a run on a GPU."""
    with pytest.raises(OptionError) as error:
        LLM(str(path), kernels="reference", dtype="float32", device="simulated:gpu")
    return str(error.value)


def test_a_gpu_is_refused_by_name(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "queries scaled by learned logarithms of positions" in refused(checkpoints("mistral_large4"))
