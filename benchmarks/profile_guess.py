"""How the time of one guess of a model's own layer divides: every C++ op by its shape, and all that is not an op.

    python benchmarks/profile_guess.py [--model Qwen3.6-35B-A3B] [--layers 3] [--tokens 48] [--drafted 2]
        [--batch 1] [--draft-vocabulary all]

Random weights, experts q4_0 and the rest q8_0, as in `draft_speed.py`. Every pass has a draft of --drafted tokens,
whether it pays or not; a guess is one pass of the layer. A clock goes around every function of the extension, as in
`profile_decode.py`. Told are medians over passes of the layer; the first of each draft also takes in what came since.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from typing import Any

from draft_speed import MODELS
from profile_decode import OTHER, Times, clocks

from headrace import LLM, SamplingParams
from headrace.engine.bench.random_weights import RandomSampler, RandomWeights
from headrace.engine.speculation.mtp.drafter import MtpDrafter
from headrace.engine.speculation.speculation import Speculation


class Always(Speculation):
    """Drafts so many tokens in every pass."""

    drafted = 1

    def _lengths(self, rates: list[float], longest: list[int], *_: Any) -> list[int]:
        return [min(self.drafted, most) for most in longest]


def guesses(llm: LLM, drafted: int, batch: int, tokens: int) -> list[Times]:
    """The division of each pass of the layer, in seconds."""
    usual = llm.loop.drafts
    assert usual is not None
    drafter = usual.speculation.drafter
    assert isinstance(drafter, MtpDrafter), "a model without such a layer"
    speculation = Always(drafter, None, must_pay=False, most_states=usual.speculation.most_states)
    speculation.drafted = drafted
    llm.loop.speculate(speculation)
    found: list[Times] = []
    times: Times = defaultdict(float)
    one_pass = drafter._pass

    def timed(*args: Any, **named: Any) -> Any:
        times.clear()
        start = time.perf_counter()
        out = one_pass(*args, **named)
        found.append({**times, OTHER: time.perf_counter() - start - sum(times.values())})
        return out

    drafter._pass = timed  # type: ignore[method-assign]
    prompts = [[100 * i + 1, *range(2, 64)] for i in range(batch)]
    with clocks(times):
        llm.generate(prompts, SamplingParams(max_new_tokens=tokens + 1, ignore_eos=True))
    return found[4:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS["mtp"])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--drafted", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--draft-vocabulary", default="all")
    asked = parser.parse_args()
    with LLM(
        RandomWeights(asked.model, asked.layers), sampler=RandomSampler(), expert_format="q4_0", dense_format="q8_0",
        max_context=512, max_sequences=8, speculate="mtp", draft_vocabulary=asked.draft_vocabulary,
    ) as llm:  # fmt: skip
        found = guesses(llm, asked.drafted, asked.batch, asked.tokens)
    names = dict.fromkeys(name for one in found for name in one)
    micros = {name: statistics.median(one.get(name, 0.0) for one in found) * 1e6 for name in names}
    whole = statistics.median(sum(one.values()) for one in found) * 1e6
    for name, us in sorted(micros.items(), key=lambda one: -one[1]):
        print(f"{name:28} {us:10.1f} us {100 * us / whole:6.1f} %")
    print(
        json.dumps({"model": asked.model, "layers": asked.layers, "guess_us": round(whole, 1), "guesses": len(found)})
    )


if __name__ == "__main__":
    main()
