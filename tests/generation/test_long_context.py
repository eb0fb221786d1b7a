"""A long prompt takes the memory that was stated for it: nothing grows with the square of the context."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peak import PEAK

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
