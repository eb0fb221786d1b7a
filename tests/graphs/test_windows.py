"""Decode steps as graphs of models whose layers over a window have pages of their own: their tables go where a step's
inputs go, and rows without a sequence have a page there that is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_gpu import StandIn

from headrace import LLM, SamplingParams
from headrace.engine.model.kv_cache import PAGE, KeysAndValues

Checkpoints = Callable[[str], Path]
LONG = SamplingParams(max_new_tokens=80, ignore_eos=True)
PROMPTS = [torch.randint(3, 160, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (90, 33, 2)]


def load(path: Path, **options: Any) -> LLM:
    return LLM(str(path), dtype="float32", max_context=256, max_sequences=3, prefill_chunk=PAGE, **options)


def tokens(llm: LLM, count: int) -> list[list[int]]:
    return [one.token_ids for one in llm.generate(PROMPTS[:count], LONG)]


@pytest.mark.parametrize("variant", ["gpt_oss", "gemma4_text"])
@pytest.mark.parametrize("where", [{"placement": "gpu"}, {"n_cpu_moe": 2}], ids=str)
def test_the_same_tokens_and_bytes_as_by_hand(
    variant: str, where: dict[str, Any], gpu: StandIn, checkpoints: Checkpoints
) -> None:
    """Of a batch that fills a graph, and of one that is padded, over windows of 8 tokens that move by 80."""
    path = checkpoints(variant)
    with (
        load(path) as plain,
        load(path, device="simulated", handoff="eager", **where) as eager,
        load(path, device="simulated", handoff="memop", **where) as graphed,
    ):
        for llm in (plain, eager, graphed):
            assert llm.loop.windows.pools
        for count in (1, 3):
            before = gpu.recorders[-1].replays
            assert tokens(graphed, count) == tokens(eager, count) == tokens(plain, count)
            assert gpu.recorders[-1].replays >= before + 79, "decode steps ran without graphs"
        for one, other in zip(eager.ledger.passes, graphed.ledger.passes, strict=True):
            assert one.bytes == other.bytes
        for llm in (plain, eager, graphed):
            assert all(pool.table.available == pool.pages - 1 for pool in llm.loop.windows.pools)


def test_rows_without_a_sequence_write_what_is_nobodys(gpu: StandIn, checkpoints: Checkpoints) -> None:
    """Three sequences in a graph of four: page 0 and those of the sequences are written; there are others."""
    with load(checkpoints("gpt_oss"), device="simulated", handoff="memop", placement="gpu") as llm:
        windowed = [one for one in llm.parts.decoder.cache.layers if isinstance(one, KeysAndValues) and one.kind]
        taken = llm.loop.windows.pools[0].table.taken
        for layer in windowed:
            assert isinstance(layer.k, torch.Tensor)
            layer.k[1:] = 7.0
        llm.generate([prompt[:2] for prompt in PROMPTS], SamplingParams(max_new_tokens=5, ignore_eos=True))
        assert sum(count > 0 for count in taken) == 4, "page 0, and one of each"
        for layer in windowed:
            assert isinstance(layer.k, torch.Tensor)
            untouched = [bool((page == 7.0).all()) for page in layer.k]
            assert untouched == [count == 0 for count in taken]
