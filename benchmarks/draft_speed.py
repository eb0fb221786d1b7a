"""Drafts on random weights in the shape of a real model: tokens a second with and without, beside what was predicted.

    python benchmarks/draft_speed.py [--drafter script|mtp] [--model NAME] [--layers 4] [--rounds 5]
        [--rates 0,0.3,0.6,0.9] [--batches 1,4] [--vocabularies auto] [--json FILE]

The model goes on with a text that is known before, and a drafter says it with each token right as often as --rates say;
the lengths of drafts are what headrace chooses with `--speculate auto`.

    script    the drafter costs nothing, as a look-up does; by default of Qwen3-30B-A3B
    mtp       the model's own layer for multi-token prediction drafts, with all that it costs, and the script takes the
              place of what it said; by default of Qwen3.6-35B-A3B. Tokens of the text have ids as often below 8,192,
              16,384 and so on as in English and code; a guess that chooses among fewer tokens says no other.
              --vocabularies all,auto measures each beside the speed without, all in one round

The two sides take turns in one process; told are medians over rounds of tokens a second and of their ratio. predicted:
of every pass the tokens that were expected over the seconds that were, by the bandwidth model and what passes of that
size took before. rows: of the head, in the mean
guess. guess_ms: what the drafter said at the end that a token takes it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from interleave import Rates, medians, ratio, take_turns
from torch import Tensor

from headrace import LLM, SamplingParams
from headrace.engine.bench.passport import passport
from headrace.engine.bench.random_weights import RandomWeights
from headrace.engine.generation.sampler import sample
from headrace.engine.generation.sequence import Sequence
from headrace.engine.ledger.guesses import NONE as NO_GUESSES
from headrace.engine.ledger.guesses import Guesses
from headrace.engine.ledger.passes import Pass
from headrace.engine.planning.own_layer import draft_rows
from headrace.engine.speculation.drafter import Draft
from headrace.engine.speculation.drafts import Drafts
from headrace.engine.speculation.length import Passes
from headrace.engine.speculation.mtp.drafter import MtpDrafter
from headrace.engine.speculation.mtp.layer import MtpLayer
from headrace.engine.speculation.speculation import FREE, Offer, Speculation
from headrace.engine.speculation.vocabulary.draft_vocabulary import DraftVocabulary
from headrace.kernels import Ops

MODELS = {"script": "Qwen3-30B-A3B", "mtp": "Qwen3.6-35B-A3B"}
PROMPT, NEW = 64, 128
OFF = "off"


class Text:
    """The token at each place of each sequence, known before: sampler and drafter."""

    is_free: Literal[True] = True
    token_s = 0.0

    def __init__(self) -> None:
        self.rate, self.vocab = 0.0, 1
        self.chance = random.Random(1)
        self.known: dict[int, int] = {}

    def token(self, sequence: Sequence, place: int) -> int:
        """As often among the first so many of the vocabulary as in English and code. Each is made once: that a text is
        known costs nothing, and both sides ask for the same."""
        seed = sequence.tokens[0] * 7919 + place * 104_729
        if seed not in self.known:
            self.known[seed] = self._token(seed)
        return self.known[seed]

    def _token(self, seed: int) -> int:
        chance = random.Random(seed)
        at, below = chance.random(), 0
        for rows in draft_rows.choices("auto", self.vocab):
            if at <= draft_rows.share(rows, self.vocab):
                return chance.randrange(below, rows)
            below = rows
        return chance.randrange(self.vocab)

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

    def __init__(self, layer: MtpLayer, text: Text, vocabulary: DraftVocabulary) -> None:
        super().__init__(layer, vocabulary)
        self.text = text

    def draft_all(self, asked: Seq[tuple[Sequence, int]]) -> list[Draft | None]:
        made = super().draft_all(asked)
        return [
            None if one is None else self._said(sequence, one) for one, (sequence, _) in zip(made, asked, strict=True)
        ]

    def _said(self, sequence: Sequence, made: Draft) -> Draft:
        """What the script says in its place, as far as it could be said."""
        tokens = self.text.draft(sequence, len(made.tokens)).tokens
        return replace(made, tokens=[0 if token in made.left_out else token for token in tokens])


class Watched(Speculation):
    """Keeps what it expected of every pass: tokens, and seconds."""

    tokens = seconds = 0.0
    has_chosen = False

    def propose(self, sequences: list[Sequence], room: int) -> None:
        self.has_chosen = False
        super().propose(sequences, room)
        context = max((one.computed for one in sequences), default=0)
        if self.has_chosen or not sequences or not self._can_tell(len(sequences), context):
            return
        took = self._passes(sequences, context).seconds(0)  # of a pass for which nothing could be drafted
        if took is not None:
            self.tokens += len(sequences)
            self.seconds += took

    def _choose(self, offers: list[Offer], passes: Passes, sequences: int, room: int) -> list[int]:
        self.has_chosen, found = True, super()._choose(offers, passes, sequences, room)
        costly, way = self._costly_one(), FREE
        if costly is not None:
            rows = costly.vocabulary.head.rows
            way = next(one for one in costly.vocabulary.ways() if one.rows == rows)
        took = passes.seconds(sum(found))
        if took is not None:
            pairs = [(one.rate_of(way), d) for one, d in zip(offers, found, strict=True)]
            self.tokens += sequences + sum(rate ** (j + 1) for rate, d in pairs for j in range(d))
            self.seconds += took + way.token_s * sum(found)
        return found


@dataclass
class Side:
    """What drafts on one side, and what came of its rounds."""

    drafts: Drafts
    watched: Watched
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    guesses: Guesses = NO_GUESSES
    hoped: list[float] = field(default_factory=list)

    def took(self, decode: list[Pass]) -> None:
        self.counts.append((len(decode), sum(p.drafted for p in decode), sum(p.accepted for p in decode)))
        self.guesses = sum((p.guesses for p in decode), self.guesses)
        if self.watched.seconds:  # nothing is predicted of a model that the caches hold
            self.hoped.append(self.watched.tokens / self.watched.seconds)

    def told(self) -> dict[str, Any]:
        passes, drafted, accepted = (sum(column) for column in zip(*self.counts, strict=True))
        predicted = medians({"": self.hoped})[""] if self.hoped else None
        found = {"predicted": predicted, "drafted_a_pass": round(drafted / passes, 2), "accepted": accepted}
        drafter = self.watched.drafter
        if drafter.is_free:
            return found
        rows = self.guesses.mean_rows
        return {**found, "rows": rows, "guess_ms": round(1e3 * drafter.vocabulary.seconds(rows), 3)}


def measured(
    llm: LLM, text: Text, drafters: Mapping[str, Text | Scripted], batch: int, rate: float, rounds: int
) -> list[dict[str, Any]]:
    """All sides in turns, for a batch and a rate of acceptance."""
    usual, sides = llm.loop.drafts, dict[str, Side]()
    assert usual is not None, "nothing can be predicted: run headrace measure"
    for name, drafter in drafters.items():
        watched = Watched(drafter, usual.speculation.times, most_states=usual.speculation.most_states)
        llm.loop.speculate(watched)
        assert llm.loop.drafts is not None
        sides[name] = Side(llm.loop.drafts, watched)
    text.rate = rate

    def run(turn: int, name: str) -> float:
        side, number = sides.get(name), [OFF, *sides].index(name)
        llm.loop.drafts = llm.loop.scheduler.drafts = None
        if side is not None:
            llm.loop.drafts, llm.loop.scheduler.drafts = side.drafts, side.watched
            side.watched.tokens = side.watched.seconds = 0.0
        prompts = [[1000 * turn + 100 * i + number, *range(1, PROMPT)] for i in range(batch)]
        with llm.ledger.recording() as passes:
            llm.generate(prompts, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
        decode = [one for one in passes if one.phase == "decode"]
        if side is not None and turn:
            side.took(decode)
        return sum(one.gained for one in decode) / sum(one.measured_s for one in decode)

    rates: Rates = take_turns({name: partial(run, name=name) for name in (OFF, *sides)}, rounds)
    found = [
        {"batch": batch, "acceptance": rate, OFF: medians(rates)[OFF], "drafts": name, "on": medians(rates)[name],
         "ratio": ratio(rates, name, OFF), **side.told()}
        for name, side in sides.items()
    ]  # fmt: skip
    for one in found:
        print(json.dumps(one), flush=True)
    llm.loop.drafts, llm.loop.scheduler.drafts = usual, usual.speculation
    return found


def drafters_of(llm: LLM, text: Text, vocabularies: list[str]) -> dict[str, Text | Scripted]:
    """By name what drafts."""
    usual = llm.loop.drafts
    drafter = None if usual is None else usual.speculation.drafter
    if not isinstance(drafter, MtpDrafter):
        return {"auto": text}
    own = drafter.vocabulary
    sizes = {
        name: draft_rows.choices(name if name in ("auto", "all") else int(name), text.vocab) for name in vocabularies
    }
    return {
        name: Scripted(drafter.layer, text, DraftVocabulary(own.head, each, own.rest_s, own.row_s))
        for name, each in sizes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", choices=MODELS, default="script")
    parser.add_argument("--model", help="a name of the catalogue, or a config.json")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", default="0,0.3,0.6,0.9")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--vocabularies", default="auto", help="of --drafter mtp: auto, all, N, or several of these")
    parser.add_argument("--json", type=Path)
    asked, text = parser.parse_args(), Text()
    with LLM(
        RandomWeights(asked.model or MODELS[asked.drafter], asked.layers), sampler=text, expert_format="q4_0",
        dense_format="q8_0", max_context=512, max_sequences=8, speculate="mtp" if asked.drafter == "mtp" else "auto",
    ) as llm:  # fmt: skip
        text.vocab = llm.spec.vocab
        drafters = drafters_of(llm, text, asked.vocabularies.split(","))
        found = [
            row
            for batch in asked.batches.split(",")
            for rate in asked.rates.split(",")
            for row in measured(llm, text, drafters, int(batch), float(rate), asked.rounds)
        ]
        result = {"rows": found, "passport": passport(llm.parts.context)}
    if asked.json is not None:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
