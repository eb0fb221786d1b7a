"""What a bench decodes: the steps of a batch that are timed, and the same with drafts and without in turns.

Drafts are measured on text of which nothing was written before. Each round has prompts of its own; both sides sample
from them at temperature 1 with the same seed, which gives the same text, each under a salt that no run had before: a
look-up finds neither what the other side wrote nor an earlier round. Greedy text would not do, which runs in circles
that every look-up foresees.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from ...errors import OptionError
from ..config import SamplingParams
from ..core.expected_time import ExpectedPasses
from ..ledger.passes import Bytes, Pass
from ..ledger.summary import Summary, summarise
from ..llm import LLM
from ..model.kv_cache import salted
from ..planning.speed import MOST_DRAFTED, Drafted, gains
from ..speculation.pass_times import PassTimes

Once = Callable[[int], list[Pass]]  # runs a round, by its number, and gives its passes
DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class InTurns:
    """The same text with drafts and without. Rates are tokens per second of all sequences together, by round; drafted,
    accepted: tokens of all rounds; bytes are per token."""

    rounds: tuple[float, ...]
    rounds_without: tuple[float, ...]
    drafted: int
    accepted: int
    bytes_per_token: Bytes
    bytes_per_token_without: Bytes

    @property
    def tok_s(self) -> float:
        return statistics.median(self.rounds)

    @property
    def tok_s_without(self) -> float:
        return statistics.median(self.rounds_without)

    @property
    def gains(self) -> list[float]:
        """How many times as many tokens a second drafts give, by round."""
        return [a / b for a, b in zip(self.rounds, self.rounds_without, strict=True)]

    @property
    def gain(self) -> float:
        return statistics.median(self.gains)


def once(llm: LLM, new: int, batch: int, depth: int) -> Once:
    """Runs new tokens of a batch, after a few that do not count; the text is the same in every round."""
    prompts = [prompt(llm, max(depth, 1), ("before", i)) for i in range(batch)]
    passes(llm, prompts, SamplingParams(max_new_tokens=min(new, 4) + 1, ignore_eos=True), DECODE)
    params = SamplingParams(max_new_tokens=new + 1, ignore_eos=True)  # the first new token comes from prefill
    return lambda turn: _whole_steps(passes(llm, prompts, params, DECODE), batch, new)


def in_turns(llm: LLM, new: int, batch: int, depth: int, rounds: int) -> InTurns | None:
    """Both sides, each once unmeasured; which is first changes from round to round. None where nothing drafts."""
    if llm.loop.drafts is None:
        return None
    found: dict[bool, list[list[Pass]]] = {True: [], False: []}
    for turn in range(-1, rounds):
        for drafts in (turn % 2 == 0, turn % 2 == 1):
            with nullcontext() if drafts else without_drafts(llm):
                steps = _new_text(llm, new, batch, depth, turn, drafts)
            if turn >= 0:
                found[drafts].append(steps)
    with_them, without = (_together(found[drafts]) for drafts in (True, False))
    return InTurns(
        rounds=tuple(summarise(steps, DECODE).tok_s for steps in found[True]),
        rounds_without=tuple(summarise(steps, DECODE).tok_s for steps in found[False]),
        drafted=with_them.drafted,
        accepted=with_them.accepted,
        bytes_per_token=with_them.bytes_per_token(),
        bytes_per_token_without=without.bytes_per_token(),
    )


def _new_text(llm: LLM, new: int, batch: int, depth: int, turn: int, drafts: bool) -> list[Pass]:
    requests = []
    for i in range(batch):
        params = SamplingParams(max_new_tokens=new + 1, ignore_eos=True, temperature=1.0, seed=batch * (turn + 1) + i)
        request = llm.admission.request(prompt(llm, max(depth, 1), ("new text", turn, i)), params)
        request.sequence.salt = salted(f"bench {new} {batch} {depth} {turn} {drafts}")
        requests.append(request)
    with llm.ledger.recording() as found:
        llm.loop.run(requests)
    return _whole_steps([one for one in found if one.phase == DECODE], batch, new)


@contextmanager
def without_drafts(llm: LLM) -> Iterator[None]:
    """Within it nothing is drafted."""
    loop = llm.loop
    before = loop.drafts, loop.scheduler.drafts
    loop.drafts = loop.scheduler.drafts = None
    try:
        yield
    finally:
        loop.drafts, loop.scheduler.drafts = before


def predicted_gains(llm: LLM, batch: int, context: int) -> tuple[Drafted, ...]:
    """What drafts gain on this machine, by how often a drafted token is right, for sequences of so many tokens; experts
    as for uniform routing. Empty where the seconds of such passes are not known."""
    moe = llm.spec.moe
    seconds_of = PassTimes(ExpectedPasses(llm.parts, llm.predictions), moe.experts, moe.top_k).of(batch, context)
    seconds = [seconds_of(batch * drafted) for drafted in range(MOST_DRAFTED + 1)]
    known = [one for one in seconds if one is not None]
    put_back = llm.spec.state_elements > 0
    return gains(known, put_back=put_back) if len(known) == len(seconds) else ()


def prompt(llm: LLM, tokens: int, seed: object) -> list[int]:
    """Random token ids, the same for the same seed."""
    rng = random.Random(repr(seed))
    return [rng.randrange(llm.spec.vocab) for _ in range(tokens)]


def passes(llm: LLM, prompts: list[list[int]], params: SamplingParams, phase: str) -> list[Pass]:
    """The passes of one phase of a run."""
    with llm.ledger.recording() as found:
        llm.generate(list(prompts), params)
    return [one for one in found if one.phase == phase]


def _whole_steps(found: list[Pass], batch: int, new: int) -> list[Pass]:
    """Steps of the whole batch: prompts of large ones take several passes, and those that came first end first."""
    whole = [one for one in found if len(one.sequences) == batch]
    if not whole:
        raise OptionError(
            f"of {batch} sequences the first was done, with --new {new}, before the last one began: give more"
        )
    return whole


def _together(rounds: list[list[Pass]]) -> Summary:
    return summarise([one for steps in rounds for one in steps], DECODE)
