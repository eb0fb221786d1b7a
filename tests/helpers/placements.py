"""Placements that tests run the demo model under: every kind of rule, on a simulated GPU or two."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.kernels.passes.tally import Choice

EVEN_ON_CPU = {
    "version": 1,
    "default": "gpu0",
    "rules": [
        {"layers": "all", "experts": list(range(0, 16, 2)), "tier": "cpu"},
        {"layers": "2-4", "experts": "5-12", "tier": "gpu1"},
        {"layers": 5, "tier": "cpu"},
        {"layers": 6, "tier": "gpu1"},
    ],
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "cpu-moe": {"cpu_moe": True},
    "half": {"n_cpu_moe": 3},
    "gpu": {"placement": "gpu"},
    "auto": {"vram_limit": 0.027},
    "split": {"n_cpu_moe": 2, "tensor_split": "1,1"},
    "second": {"n_cpu_moe": 1, "tensor_split": "0,1"},
    "file": {"placement": "file"},
}


def placed(options: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The options with a real file where one is meant."""
    if options.get("placement") != "file":
        return options
    (tmp_path / "even.json").write_text(json.dumps(EVEN_ON_CPU))
    return {**options, "placement": tmp_path / "even.json"}


def force(llm: LLM, chosen: list[list[int]]) -> None:
    """Every token chooses these experts, layer by layer over the MoE layers, with equal weights."""
    moe_layers = [i for i, is_moe in enumerate(llm.spec.is_moe) if is_moe]

    def choose(index: int, choice: Choice) -> Choice:
        ids = torch.tensor(chosen[moe_layers.index(index)], dtype=torch.int32).expand(len(choice[0]), -1).contiguous()
        return ids, torch.full(ids.shape, 1.0 / ids.shape[1])

    llm.parts.decoder.choose = choose


def break_a_pass(llm: LLM, prompt: list[list[int]], params: SamplingParams) -> None:
    """A pass that fails after its first layer with experts."""
    inner = llm.parts.decoder.experts.collect

    def broken(job: Any) -> torch.Tensor:
        inner(job)
        raise RuntimeError("broken")

    llm.parts.decoder.experts.collect = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        llm.generate(prompt, params)
    llm.parts.decoder.experts.collect = inner  # type: ignore[method-assign]


def recorded(llm: LLM) -> tuple[dict[int, dict[int, list[int]]], dict[int, tuple[list[int], int]]]:
    """What passes of a model will do, by their index: the experts that each layer chose; context lengths and rows."""
    seen: dict[int, dict[int, list[int]]] = defaultdict(dict)
    shapes: dict[int, tuple[list[int], int]] = {}
    forward = llm.parts.decoder.forward

    def choose(index: int, choice: Choice) -> Choice:
        seen[llm.ledger.count][index] = choice[0].unique().tolist()
        return choice

    def record(inputs: Any, *rest: Any) -> torch.Tensor:
        shapes[llm.ledger.count] = (inputs.places.contexts_S.tolist(), len(inputs.rows))
        return forward(inputs, *rest)

    llm.parts.decoder.choose, llm.parts.decoder.forward = choose, record  # type: ignore[method-assign]
    return seen, shapes
