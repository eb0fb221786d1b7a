"""Decode steps of models with recurrent states as graphs: slots go where a step's inputs go, and rows without a
sequence have a slot that is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_gpu import StandIn

from headrace import LLM, DeviceError, SamplingParams
from headrace.engine.cuda_graphs.verify import Steps
from headrace.engine.model.kv_cache import States

Checkpoints = Callable[[str], Path]
GREEDY = SamplingParams(max_new_tokens=5, ignore_eos=True)
PROMPTS = [torch.randint(3, 160, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 33, 2)]


def load(checkpoints: Checkpoints, **options: Any) -> LLM:
    path = str(checkpoints("qwen3_next"))
    return LLM(path, dtype="float32", max_context=64, max_sequences=3, **options)


def tokens(llm: LLM, count: int) -> list[list[int]]:
    return [one.token_ids for one in llm.generate(PROMPTS[:count], GREEDY)]


@pytest.mark.parametrize("where", [{"placement": "gpu"}, {"n_cpu_moe": 2}], ids=str)
def test_the_same_tokens_and_bytes_as_by_hand(where: dict[str, Any], gpu: StandIn, checkpoints: Checkpoints) -> None:
    """Of a batch that fills a graph, and of one that is padded."""
    with (
        load(checkpoints) as plain,
        load(checkpoints, device="simulated", handoff="eager", **where) as eager,
        load(checkpoints, device="simulated", handoff="memop", **where) as graphed,
    ):
        for count in (1, 3):
            before = gpu.recorders[-1].replays
            assert tokens(graphed, count) == tokens(eager, count) == tokens(plain, count)
            assert gpu.recorders[-1].replays == before + 4, "decode steps ran without graphs"
        for one, other in zip(eager.ledger.passes, graphed.ledger.passes, strict=True):
            assert one.bytes == other.bytes


def test_rows_without_a_sequence_change_no_other_slot(gpu: StandIn, checkpoints: Checkpoints) -> None:
    """Three short sequences in a graph of four: their slots and the spare one are written, no slot of a copy."""
    with load(checkpoints, device="simulated", handoff="memop", placement="gpu") as llm:
        states = next(layer.state for layer in llm.parts.decoder.cache.layers if isinstance(layer, States))
        llm.generate([prompt[:2] for prompt in PROMPTS], GREEDY)
        assert [bool(slot.any()) for slot in states] == [True] * 4 + [False] * 4


def test_a_state_that_is_not_put_back_would_be_seen(
    gpu: StandIn, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths take the same step from the same state; else their logits differ."""
    monkeypatch.setattr(Steps, "put_back", lambda self: None)
    with pytest.raises(DeviceError, match="differs from the same step by hand"):
        load(checkpoints, device="simulated", handoff="memop", placement="gpu")
