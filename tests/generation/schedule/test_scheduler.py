"""Who runs next, on a clock that the test moves: no model, only pages, counts and a cost of passes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from headrace import SamplingParams
from headrace.engine.generation.schedule.batch import DECODE, MIXED, PREFILL, Batch
from headrace.engine.generation.schedule.chunk_limit import FULL_READ, ChunkLimit
from headrace.engine.generation.schedule.fair_share import DECODE_SHARE, FairShare
from headrace.engine.generation.schedule.scheduler import WINDOW, Scheduler
from headrace.engine.generation.schedule.waiting import MOST_PASSED_OVER, shared_pages
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.model.kv_cache import PAGE, PageTable, pages_for

STALL, CHUNK = 0.5, 2048
FULL, EACH, LEAST = 0.25, 0.002, 0.01  # seconds: of all experts once, of a prompt's token, of a pass with one token


@dataclass
class Costs:
    """Passes of a model that memory and computing bound: what its experts take, or its tokens, whichever is more."""

    factor: float = 1.0  # how far it is off

    def seconds(self, tokens: int, rows: int, context: int) -> float:
        return self.factor * true_seconds(tokens, rows)

    def full_read(self) -> float:
        return self.factor * FULL


def true_seconds(tokens: int, rows: int) -> float:
    return max(min(FULL, LEAST * (tokens + rows)), EACH * tokens)


@dataclass
class Engine:
    """The loop around a scheduler; the next token of a sequence follows from all before it."""

    pages: int = 4096
    sequences: int = 8
    chunk: int = CHUNK
    costs: Costs | None = field(default_factory=Costs)
    stall: float | None = STALL
    share: float = DECODE_SHARE

    def __post_init__(self) -> None:
        self.now = 0.0
        self.table = PageTable(self.pages)
        costs = self.costs or Unknown()
        self.scheduler = Scheduler(
            self.table, self.chunk, self.sequences, limit=ChunkLimit(costs, self.chunk, self.stall),
            share=FairShare(self.share), clock=lambda: self.now,
        )  # fmt: skip
        self.made = 0
        self.batches: list[Batch] = []
        self.times: dict[int, list[float]] = {}

    def add(self, prompt: list[int], new: int, priority: int = 0) -> Sequence:
        sequence = make_sequence(self.made, prompt, SamplingParams(max_new_tokens=new))
        sequence.priority = priority
        self.made += 1
        self.scheduler.add(sequence)
        self.times[sequence.id] = []
        return sequence

    def step(self) -> Batch | None:
        batch = self.scheduler.next_batch()
        if batch is None:
            return None
        assert batch.tokens <= max(self.chunk, self.sequences)
        for sequence, context in zip(batch.sequences, batch.contexts, strict=True):
            assert context <= len(sequence.pages) * PAGE, "a token without a place in the cache"
        seconds = true_seconds(batch.tokens - batch.decoding, batch.decoding)
        self.now += seconds
        ready = [batch.sequences[i] for i in batch.ready]
        self.scheduler.commit(batch, seconds)
        self.batches.append(batch)
        for sequence in ready:
            sequence.tokens.append(hash(tuple(sequence.tokens)) % 1000)
            self.times[sequence.id].append(self.now)
            if len(sequence.completion) >= sequence.params.max_new_tokens:
                sequence.finish_reason = "length"
                self.scheduler.finish(sequence)
        return batch

    def run(self, most: int = 100_000) -> None:
        for _ in range(most):
            if self.step() is None:
                return
        raise AssertionError("it does not end")

    def all_free(self) -> bool:
        return self.table.available == self.pages and not any(self.table.owners)


class Unknown:
    """A machine of which nothing was measured."""

    def seconds(self, tokens: int, rows: int, context: int) -> None:
        return None

    def full_read(self) -> None:
        return None


def prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def longest_gap(times: list[float]) -> float:
    return max(later - earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0], ids=["right", "too fast", "too slow"])
def test_a_long_prompt_holds_up_text_for_no_longer_than_the_limit(factor: float) -> None:
    engine = Engine(costs=Costs(factor))
    talker = engine.add(prompt(20, 1), 800)
    for _ in range(20):
        engine.step()
    engine.add(prompt(20_000, 2), 4)
    engine.run()
    limit = max(STALL, FULL_READ * FULL)
    gaps = [b - a for a, b in pairwise(engine.times[talker.id]) if b - a > 2 * LEAST]
    assert max(gaps[4:]) <= 1.1 * limit  # when the prediction was put right
    assert max(gaps) <= 2.2 * limit
    assert longest_gap(engine.times[talker.id]) == max(gaps)
    assert {b.phase for b in engine.batches} == {PREFILL, MIXED, DECODE}


def test_chunks_are_as_long_as_the_limit_allows() -> None:
    engine = Engine()
    engine.add(prompt(20, 1), 800)
    for _ in range(5):
        engine.step()
    engine.add(prompt(20_000, 2), 4)
    engine.run()
    mixed = [b for b in engine.batches if b.phase == MIXED]
    assert all(b.tokens - b.decoding == int(STALL / EACH) // PAGE * PAGE for b in mixed[:-1])


def test_without_a_prediction_the_size_of_chunks_is_found() -> None:
    engine = Engine(costs=None)
    talker = engine.add(prompt(20, 1), 3000)
    for _ in range(20):
        engine.step()
    engine.add(prompt(40_000, 2), 4)
    engine.run()
    assert longest_gap(engine.times[talker.id]) <= STALL + LEAST
    assert max(b.tokens for b in engine.batches if b.phase == MIXED) >= STALL / EACH / 2


def test_text_and_prompts_share_the_time() -> None:
    engine = Engine(sequences=4)
    engine.add(prompt(20, 1), 10_000)
    for _ in range(5):
        engine.step()
    start = engine.now
    for i in range(3):
        engine.add(prompt(30_000, 2 + i), 2)
    engine.batches.clear()
    while any(len(s.completion) == 0 for s in engine.scheduler.running + engine.scheduler.waiting):
        engine.step()
    alone = sum(true_seconds(0, b.decoding) for b in engine.batches if b.phase == DECODE)
    assert alone / (engine.now - start) == pytest.approx(1 / 3, rel=0.1)


def test_without_a_limit_prompts_come_first() -> None:
    engine = Engine(stall=None, share=0.0)
    engine.add(prompt(20, 1), 50)
    engine.step()
    engine.add(prompt(8 * CHUNK, 2), 5)
    engine.batches.clear()
    for _ in range(8):
        engine.step()
    assert [b.phase for b in engine.batches] == [MIXED] * 8
    assert engine.batches[0].tokens == CHUNK


def test_a_short_prompt_goes_before_a_long_one_that_is_under_way() -> None:
    engine = Engine()
    long = engine.add(prompt(20_000, 1), 5)
    engine.step()
    title = engine.add(prompt(300, 2), 5)
    engine.run()
    assert engine.times[title.id][-1] < engine.times[long.id][0]


def test_no_prompt_starves() -> None:
    """Short ones come for ever, faster than they can be computed."""
    engine = Engine(sequences=3)
    long = engine.add(prompt(4000, 0), 2)
    for i in range(4000):
        engine.add(prompt(300, 1 + i), 1)
        engine.step()
        if engine.times[long.id]:
            break
    assert engine.times[long.id], "the long prompt never came to its turn"
    assert engine.now < 120


def test_the_lower_priority_number_goes_first() -> None:
    engine = Engine(sequences=1)
    later, first = engine.add(prompt(40, 1), 3, priority=5), engine.add(prompt(400, 2), 3, priority=-1)
    engine.run()
    assert engine.times[first.id][-1] < engine.times[later.id][0]


def test_only_two_prompts_are_under_way_if_they_fill_a_chunk() -> None:
    engine = Engine()
    for i in range(6):
        engine.add(prompt(3 * CHUNK, i), 3)
    engine.step()
    assert len(engine.scheduler.running) == 2
    few = Engine()
    for i in range(6):
        few.add(prompt(100, i), 3)
    few.step()
    assert len(few.scheduler.running) == 6


def test_two_equal_prompts_are_computed_once() -> None:
    engine = Engine()
    one, other = engine.add(prompt(5000, 1), 3), engine.add(prompt(5000, 1), 3)
    engine.run()
    computed = sum(b.tokens - b.decoding for b in engine.batches)
    assert computed <= 5000 + PAGE
    assert one.completion == other.completion
    assert other.reused == 5000 // PAGE * PAGE


def test_equal_prompts_of_different_salts_do_not_wait_for_each_other() -> None:
    engine = Engine()
    one, other = engine.add(prompt(5000, 1), 3), engine.add(prompt(5000, 1), 3)
    other.salt = b"another"
    engine.run()
    assert sum(b.tokens - b.decoding for b in engine.batches) == 10_000
    assert one.completion == other.completion
    assert other.reused == 0


@pytest.mark.parametrize(
    ("one", "other", "pages"),
    [
        ([1] * 64, [1] * 64, 1),
        ([1] * 65, [1] * 64, 2),
        ([1] * 40 + [2] * 40, [1] * 80, 1),
        ([2] * 99, [1] * 99, 0),
        ([1], [1], 0),
    ],
)
def test_shared_pages(one: list[int], other: list[int], pages: int) -> None:
    assert shared_pages(one, other) == pages


def test_whoever_has_to_make_room_gives_the_same_tokens() -> None:
    alone = []
    for i in range(4):
        engine = Engine()
        alone.append(engine.add(prompt(100, i), 1000))
        engine.run()
    crowded = Engine(pages=80)
    together = [crowded.add(prompt(100, i), 1000) for i in range(4)]
    crowded.run()
    assert crowded.scheduler.preemptions > 0
    assert [s.completion for s in together] == [s.completion for s in alone]
    assert crowded.all_free()


def test_the_youngest_of_the_least_priority_makes_room() -> None:
    engine = Engine(pages=48)
    important = engine.add(prompt(100, 1), 1100, priority=-1)
    usual = engine.add(prompt(100, 2), 700)
    engine.run()
    assert engine.scheduler.preemptions > 0
    assert engine.times[important.id][-1] < engine.times[usual.id][-1]
    assert longest_gap(engine.times[important.id]) < 1.0


def test_smaller_ones_pass_one_that_does_not_fit_a_few_times() -> None:
    engine = Engine(pages=100, sequences=3)
    engine.add(prompt(1500, 0), 600)
    for _ in range(5):
        engine.step()
    large = engine.add(prompt(2000, 1), 2, priority=-1)
    for i in range(40):
        engine.add(prompt(100, 2 + i), 2)
    engine.run()
    before = [i for i, times in engine.times.items() if i > large.id and times[0] < engine.times[large.id][0]]
    assert len(before) == MOST_PASSED_OVER


def test_a_prompt_gets_its_pages_and_a_window() -> None:
    engine = Engine()
    sequence = engine.add(prompt(100, 1), 30_000)
    engine.step()
    assert len(sequence.pages) == pages_for(100 + WINDOW)
    short = engine.add(prompt(100, 2), 10)
    engine.step()
    assert len(short.pages) == pages_for(short.longest)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_cancelled_when_ever_every_page_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine(pages=rng.choice([64, 100, 4096]), sequences=rng.choice([1, 3, 8]), chunk=rng.choice([1, 64, 512]))
    open_ones: list[Sequence] = []
    for _ in range(600):
        if rng.random() < 0.1:
            length = rng.choice([1, 31, 32, 33, 200, 900])
            shared = prompt(length // 2, 7) + prompt(length - length // 2, rng.randrange(50))
            open_ones.append(engine.add(shared, rng.choice([1, 5, 600]), rng.choice([0, 0, 3])))
        if open_ones and rng.random() < 0.08:
            engine.scheduler.finish(open_ones.pop(rng.randrange(len(open_ones))))
        engine.step()
        open_ones = [s for s in open_ones if s.finish_reason is None]
        assert sum(engine.table.owners) == sum(len(s.pages) for s in engine.scheduler.running)
    engine.run()
    assert engine.all_free()
