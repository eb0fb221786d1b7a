"""A long prompt takes the memory that was stated for it: nothing grows with the square of the context."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peak import PEAK

from headrace import LLM
from headrace.engine.devices import host

TOKENS = 8000
SLACK = 48 << 20  # the allocator's, and what Python itself takes on the way
RUN = (
    PEAK
    + """
import json, sys
from headrace import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", max_context=8192, max_sequences=1)
llm.generate([list(range(3, 40))], SamplingParams(max_new_tokens=2, ignore_eos=True))
before = peak()
prompt = [3 + i * 7 % 150 for i in range(int(sys.argv[2]))]
llm.generate([prompt], SamplingParams(max_new_tokens=1, ignore_eos=True))
stated = llm.parts.kv_budget.kv_bytes + llm.parts.kv_budget.work_bytes
print(json.dumps({"grown": peak() - before, "stated": stated, "heads": llm.spec.mixers[0].heads}))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.slow
def test_an_8k_prompt_stays_within_the_stated_memory(talker: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(talker), str(TOKENS)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["grown"] <= found["stated"] + SLACK, found
    scores = 4 * TOKENS**2  # of one head
    assert found["stated"] + SLACK < scores * found["heads"] / 2, "the bound would let a matrix of scores through"


def test_a_large_cache_lies_in_huge_pages(checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of it is asked for before it is written; a small one is not."""
    asked: list[int] = []
    monkeypatch.setattr(host, "all_huge", lambda tensors: asked.extend(one.data_ptr() for one in tensors) or True)
    with LLM(str(checkpoints("qwen3_moe"))) as llm:
        assert "kv" not in llm.parts.huge_pages
    monkeypatch.setattr(host, "HUGE_FROM", 1)
    for variant, each in (("qwen3_moe", 2), ("deepseek_v3", 1)):
        asked.clear()
        with LLM(str(checkpoints(variant))) as llm:
            assert asked == [one.data_ptr() for one in llm.parts.decoder.cache.memories()]
            assert len(asked) == each * len(llm.parts.decoder.cache.layers)
            assert llm.parts.huge_pages["kv"] is True
