"""Drafts on random weights in the shape of Qwen3-30B-A3B: tokens a second with and without, beside what was predicted.

    python benchmarks/draft_speed.py [--layers 4] [--rounds 5] [--rates 0,0.3,0.6,0.9] [--batches 1,4] [--json FILE]

The model goes on with a text that is known before, and a drafter says it with each token right as often as --rates say;
the lengths of drafts are what headrace chooses with `--speculate auto`. The two sides take turns in one process; told
are medians over rounds of tokens a second and of their ratio. predicted: of every pass the tokens that were
expected over the seconds that were, by the bandwidth model and what passes of that size took before.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, Literal

from interleave import Rates, medians, ratio, take_turns
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.bench.random_weights import RandomWeights
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.engine.speculation.drafter import Draft
from headrace.engine.speculation.speculation import Speculation
from headrace.kernels import Ops

MODEL, VOCAB, PROMPT, NEW = "Qwen3-30B-A3B", 151_936, 64, 48


class Text:
    """The token at each place of each sequence, known before: sampler and drafter."""

    is_free: Literal[True] = True
    token_s = 0.0

    def __init__(self) -> None:
        self.rate = 0.0
        self.chance = random.Random(1)

    @staticmethod
    def token(sequence: Sequence, place: int) -> int:
        return (sequence.tokens[0] * 7919 + place * 104_729) % VOCAB

    def __call__(self, logits: Tensor, ready: list[Sequence], ops: Ops) -> list[int]:
        sample(logits, ready, ops)
        return [self.token(one, len(one.tokens)) for one in ready]

    def draft(self, sequence: Sequence, most: int) -> Draft:
        said = [self.token(sequence, len(sequence.tokens) + i) for i in range(most)]
        return Draft([t if self.chance.random() < self.rate else (t + 1) % VOCAB for t in said], "script")

    def forget(self, sequence: Sequence) -> None:
        """Nothing is known of one sequence alone."""


class Watched(Speculation):
    """Keeps what it expected of every pass: tokens, and seconds."""

    tokens = seconds = 0.0

    def _lengths(
        self, rates: list[float], longest: list[int], able: Any, sequences: int, room: int, costs: list[float]
    ) -> list[int]:
        found = super()._lengths(rates, longest, able, sequences, room, costs)
        assert self.times is not None
        took = self.times.of(sequences, max(one.computed for one in able))(sum(found))
        if took is not None:
            self.tokens += sequences + sum(r ** (j + 1) for r, d in zip(rates, found, strict=True) for j in range(d))
            self.seconds += took
        return found


def measured(llm: LLM, text: Text, batch: int, rate: float, rounds: int) -> dict[str, Any]:
    """Both sides in turns, for a batch and a rate of acceptance."""
    usual = llm.loop.drafts
    assert usual is not None, "speculate is auto, and nothing can be predicted: run headrace measure"
    watched = Watched(text, usual.speculation.times)
    llm.loop.speculate(watched)
    drafting, text.rate = llm.loop.drafts, rate
    drafts: list[tuple[int, int, int]] = []
    hoped: list[float] = []

    def run(turn: int, is_on: bool) -> float:
        llm.loop.drafts = drafting if is_on else None
        llm.loop.scheduler.drafts = watched if is_on else None
        watched.tokens = watched.seconds = 0.0
        prompts = [[1000 * turn + 100 * i + is_on, *range(1, PROMPT)] for i in range(batch)]
        with llm.ledger.recording() as passes:
            llm.generate(prompts, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
        decode = [one for one in passes if one.phase == "decode"]
        if is_on and turn:
            drafts.append((len(decode), sum(p.drafted for p in decode), sum(p.accepted for p in decode)))
            hoped.append(watched.tokens / watched.seconds)
        return sum(one.gained for one in decode) / sum(one.measured_s for one in decode)

    rates: Rates = take_turns({"off": lambda turn: run(turn, False), "auto": lambda turn: run(turn, True)}, rounds)
    passes, drafted, accepted = (sum(column) for column in zip(*drafts, strict=True))
    found = {
        "batch": batch, "acceptance": rate, **medians(rates), "ratio": ratio(rates, "auto", "off"),
        "predicted": medians({"": hoped})[""], "drafted_a_pass": round(drafted / passes, 2), "accepted": accepted,
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    llm.loop.drafts, llm.loop.scheduler.drafts = usual, usual.speculation
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", default="0,0.3,0.6,0.9")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--json", type=Path)
    asked, text = parser.parse_args(), Text()
    with LLM(
        RandomWeights(MODEL, asked.layers), sampler=text, expert_format="q4_0", dense_format="q8_0", max_context=512,
        max_sequences=8,
    ) as llm:  # fmt: skip
        found = [
            measured(llm, text, int(batch), float(rate), asked.rounds)
            for batch in asked.batches.split(",")
            for rate in asked.rates.split(",")
        ]
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
