"""The demo model on three prompts of one length, in passes of every kind, and a recount of what it routed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.cuda_graphs.graph_experts import GraphedExperts
from headrace.engine.cuda_graphs.graphed_decode import GraphedDecode
from headrace.engine.experts.backend import CpuExperts
from headrace.engine.experts.tiered import TieredExperts
from headrace.engine.model.batch import Inputs
from headrace.engine.model.decoder import Decoder

LENGTH = 20  # tokens of every prompt: what stands further behind was generated
PROMPTS = [[7 * i % 150 + 3 * k + 1 for i in range(LENGTH)] for k in range(3)]
PARAMS = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (9, 6, 4)]
Key = tuple[str, int, int]  # "prompt" or "generated", layer, expert
Row = tuple[tuple[int, ...], tuple[float, ...]]  # of a token in a layer: experts and their weights


class Watch:
    """Recounts in plain Python what backends are asked to compute, by where their tokens stand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Counter[Key] = Counter()
        self.rows: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)  # by layer and position
        self.inputs: Inputs | None = None
        for kind in (CpuExperts, TieredExperts, GraphedExperts):
            monkeypatch.setattr(kind, "submit", self._seen(kind.submit))
        for owner in (Decoder, GraphedDecode):
            monkeypatch.setattr(owner, "forward", self._noted(owner.forward))

    def _noted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(it: Any, inputs: Inputs, *rest: Any) -> Any:
            self.inputs = inputs
            return forward(it, inputs, *rest)

        return noted

    def _seen(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        def seen(it: Any, layer: int, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Any:
            assert self.inputs is not None
            places = self.inputs.places.positions_T
            if len(ids_TK) < len(places):  # only these went through the last layer
                places = places[self.inputs.rows]
            rows = zip(places.tolist(), ids_TK.tolist(), weights_TK.tolist(), strict=False)
            for place, ids, weights in rows:  # rows behind are padding
                self.rows[layer, place].append((tuple(ids), tuple(weights)))
                for expert in ids:
                    self.found["prompt" if place < LENGTH else "generated", layer, expert] += 1
            return submit(it, layer, x_TD, ids_TK, weights_TK)

        return seen


def run(llm: LLM) -> list[list[int]]:
    return [done.token_ids for done in llm.generate(PROMPTS, PARAMS)]


def load_demo(**options: Any) -> LLM:
    return LLM("demo", max_context=96, max_sequences=3, prefill_chunk=13, no_measure=True, **options)


def split_layers(tmp_path: Path) -> dict[str, Any]:
    """Options by which each layer has experts in RAM and on the GPU."""
    rules = [{"layers": "all", "experts": [0, 3, 4, 9], "tier": "cpu"}]
    (tmp_path / "split.json").write_text(json.dumps({"version": 1, "default": "gpu0", "rules": rules}))
    return {"placement": tmp_path / "split.json"}
