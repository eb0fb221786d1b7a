"""Messages larger than what the system takes at once, sent and received at the same time, also while a host dies."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from host_processes import experts_of, hosts_of, later

from headrace import LLM
from headrace.engine.bench.random_weights import random_llm
from headrace.loaders import model_source
from headrace.loaders.weights import converted

CONFIG: dict[str, Any] = {
    **model_source.find("Qwen3-30B-A3B").config, "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 64, "intermediate_size": 64,
    "num_experts": 16, "num_experts_per_tok": 8, "vocab_size": 500, "max_position_embeddings": 2048,
}  # fmt: skip
TOKENS = [number % 499 for number in range(1200)]
OPTIONS: dict[str, Any] = {"max_context": 1300, "prefill_chunk": 1200, "no_measure": True}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which a prompt sends 5 MB a layer to each host, and gets 20 MB back."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with random_llm(CONFIG, expert_format="bf16", dense_format="bf16", max_context=64) as llm:
        converted.save(folder, folder / "packed", llm.parts.weights, llm.parts.checkpoint.formats)
    return folder / "packed"


RULES = [{"layers": "all", "experts": "0-4", "tier": "cpu"}, {"layers": "all", "experts": "5-9", "tier": "h2"}]


def test_a_long_prompt_and_a_host_that_dies_in_it(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"version": 1, "default": "h1", "rules": RULES}))
    with LLM(wide, device="cpu", **OPTIONS) as llm:
        expected = llm.logits(TOKENS)
    with hosts_of(wide, 2, placement=tmp_path / "p.json", host_timeout=1.0, **OPTIONS) as (hosts, llm):
        assert torch.equal(llm.logits(TOKENS), expected)
        with later(0.05, hosts.signal, "h1", signal.SIGSTOP):
            assert torch.equal(llm.logits(TOKENS), expected)
        assert torch.equal(llm.logits(TOKENS), expected)
        assert experts_of(llm).members.losses == 1
