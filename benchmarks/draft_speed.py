"""Drafts on random weights in the shape of a real model: tokens a second with and without, beside what was predicted.

    python benchmarks/draft_speed.py [--drafter script|mtp] [--model NAME] [--layers 4] [--rounds 5]
        [--rates 0,0.3,0.6,0.9] [--batches 1,4] [--json FILE]

The model goes on with a text that is known before, and a drafter says it with each token right as often as --rates say;
the lengths of drafts are what headrace chooses with `--speculate auto`.

    script    the drafter costs nothing, as a look-up does; by default of Qwen3-30B-A3B
    mtp       the model's own layer for multi-token prediction drafts, with all that it costs, and the script takes the
              place of what it said; by default of Qwen3.6-35B-A3B

The two sides take turns in one process; told are medians over rounds of tokens a second and of their ratio. predicted:
of every pass the tokens that were expected over the seconds that were, by the bandwidth model and what passes of that
size took before. guess_ms: what the drafter said at the end that a token takes it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal

from interleave import Rates, medians, ratio, take_turns
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.bench.random_weights import RandomWeights
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.engine.speculation.drafter import Draft
from headrace.engine.speculation.mtp.drafter import MtpDrafter
from headrace.engine.speculation.mtp.layer import MtpLayer
from headrace.engine.speculation.speculation import Speculation
from headrace.kernels import Ops

MODELS = {"script": "Qwen3-30B-A3B", "mtp": "Qwen3.6-35B-A3B"}
PROMPT, NEW = 64, 48


class Text:
    """The token at each place of each sequence, known before: sampler and drafter."""

    is_free: Literal[True] = True
    token_s = 0.0

    def __init__(self) -> None:
        self.rate, self.vocab = 0.0, 1
        self.chance = random.Random(1)

    def token(self, sequence: Sequence, place: int) -> int:
        return (sequence.tokens[0] * 7919 + place * 104_729) % self.vocab

    def __call__(self, logits: Tensor, ready: list[Sequence], ops: Ops) -> list[int]:
        sample(logits, ready, ops)
        return [self.token(one, len(one.tokens)) for one in ready]

    def draft(self, sequence: Sequence, most: int) -> Draft:
        said = [self.token(sequence, len(sequence.tokens) + i) for i in range(most)]
        return Draft([t if self.chance.random() < self.rate else (t + 1) % self.vocab for t in said], "script")

    def forget(self, sequence: Sequence) -> None:
        """Nothing is known of one sequence alone."""


class Scripted(MtpDrafter):
    """A model's own layer, whose guesses are made and then said otherwise."""

    def __init__(self, layer: MtpLayer, text: Text) -> None:
        super().__init__(layer)
        self.text = text

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        made = super().draft_all(asked)
        return [
            None if one is None else Draft(self.text.draft(sequence, len(one.tokens)).tokens, self.kind)
            for one, (sequence, _) in zip(made, asked, strict=True)
        ]


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
            self.seconds += took + sum(cost * d for cost, d in zip(costs, found, strict=True))
        return found


def measured(llm: LLM, text: Text, drafter: Text | Scripted, batch: int, rate: float, rounds: int) -> dict[str, Any]:
    """Both sides in turns, for a batch and a rate of acceptance."""
    usual = llm.loop.drafts
    assert usual is not None, "nothing can be predicted: run headrace measure"
    watched = Watched(drafter, usual.speculation.times, most_states=usual.speculation.most_states)
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
        "guess_ms": round(1e3 * drafter.token_s, 3),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    llm.loop.drafts, llm.loop.scheduler.drafts = usual, usual.speculation
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", choices=MODELS, default="script")
    parser.add_argument("--model", help="a name of the catalogue, or a config.json")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", default="0,0.3,0.6,0.9")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--json", type=Path)
    asked, text = parser.parse_args(), Text()
    with LLM(
        RandomWeights(asked.model or MODELS[asked.drafter], asked.layers), sampler=text, expert_format="q4_0",
        dense_format="q8_0", max_context=512, max_sequences=8, speculate="mtp" if asked.drafter == "mtp" else "auto",
    ) as llm:  # fmt: skip
        text.vocab, layer = llm.spec.vocab, llm.parts.mtp
        drafter = text if layer is None else Scripted(layer, text)
        found = [
            measured(llm, text, drafter, int(batch), float(rate), asked.rounds)
            for batch in asked.batches.split(",")
            for rate in asked.rates.split(",")
        ]
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
