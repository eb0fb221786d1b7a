"""Which pages of a window are there, by a cache that remembers what was written where: whatever comes and goes, every
token finds what it sees, and all pages come back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.config import SamplingParams
from headrace.engine.generation.schedule.batch import Batch
from headrace.engine.generation.schedule.inputs import make_inputs
from headrace.engine.generation.schedule.scheduler import Scheduler
from headrace.engine.generation.sequence import Sequence, make_sequence
from headrace.engine.ledger.windows import SLACK, Window
from headrace.engine.model.kv_cache import PAGE, PageTable
from headrace.engine.model.windows import Windows

KINDS = [Window(8), Window(100), Window(80, in_chunks=True), Window(2 * PAGE, in_chunks=True), Window(1)]


@dataclass
class Cache:
    """A scheduler whose passes write into a cache the beginning that each token ends, and look at all that it sees."""

    kinds: list[Window]
    pages: int = 200
    sequences: int = 3
    chunk: int = 48
    at_once: int = 3  # sequences whose windows fit together
    writes: list[dict[int, int]] = field(default_factory=list)
    began: dict[int, tuple[object, int]] = field(default_factory=dict)  # by sequence: since it runs, its tokens then

    def __post_init__(self) -> None:
        most = max(self.chunk, self.sequences)
        pools = [(one, one.pool(10**6, self.at_once, most)) for one in self.kinds]
        self.windows = Windows(pools, most)
        self.table = PageTable(self.pages)
        self.scheduler = Scheduler(self.table, self.chunk, self.sequences, windows=self.windows)
        self.writes = [{} for _ in range(1 + len(pools))]
        self.made = 0

    def add(self, prompt: list[int], new: int) -> Sequence:
        sequence = make_sequence(self.made, prompt, SamplingParams(max_new_tokens=new))
        self.made += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> bool:
        batch = self.scheduler.next_batch()
        if batch is None:
            return False
        self._check_pass(batch)
        ready = [batch.sequences[i] for i in batch.ready]
        self.scheduler.commit(batch)
        for sequence in ready:
            sequence.tokens.append(hash(tuple(sequence.tokens)) % 1000)
            if len(sequence.completion) >= sequence.params.max_new_tokens:
                self.scheduler.finish(sequence)
        self.check()
        return True

    def _check_pass(self, batch: Batch) -> None:
        places, first = make_inputs(batch).places, 0
        for row, (sequence, count) in enumerate(zip(batch.sequences, batch.counts, strict=True)):
            ends = beginnings(sequence.tokens, sequence.computed + count)
            if self.began.get(sequence.id, ((), 0))[0] is not sequence.windows:
                self.began[sequence.id] = sequence.windows, sequence.computed
            for kind, written in enumerate(self.writes):
                pages = places.of(kind)
                slots, table = pages.slots_T.tolist(), pages.tables_SM[row].tolist()
                for i in range(count):
                    written[slots[first + i]] = ends[sequence.computed + i]
                for position in range(sequence.computed, sequence.computed + count):
                    begin = self.kinds[kind - 1].begin(position) if kind else 0
                    for seen in range(begin, position + 1):
                        page = table[seen // PAGE]
                        assert page or not kind, "the page that is nobody's is seen"
                        assert written[page * PAGE + seen % PAGE] == ends[seen], "another prompt's keys"
            first += count

    def check(self) -> None:
        """Every page of every pool has as many owners as hold it; free, idle and held ones are all."""
        for kind, pool in enumerate(self.windows.pools):
            table, held = pool.table, [0] * pool.pages
            for sequence in self.scheduler.running:
                one = sequence.windows[kind]
                assert not any(one.pages[: one.first])
                back = max(self.began.get(sequence.id, ((), sequence.computed))[1], sequence.computed - 16)
                assert one.first <= pool.window.begin(back) // PAGE, "16 tokens taken back"
                for page in one.pages[one.first :]:
                    held[page] += 1
            assert held[0] == 0
            assert table.owners == [1, *held[1:]]
            unowned = [page for page in range(1, pool.pages) if not held[page]]
            idle = [*table.idle.new, *table.idle.again]
            assert sorted([*table.free, *idle]) == unowned
            assert set(idle) <= set(table.digest_of)
            assert not set(table.free) & set(table.digest_of)
            assert {page: digest for digest, page in table.page_of.items()} == table.digest_of

    def run(self) -> None:
        while self.step():
            pass
        assert not self.scheduler.waiting
        assert self.table.available == self.pages
        assert all(pool.table.available == pool.pages - 1 for pool in self.windows.pools)


def beginnings(tokens: list[int], count: int) -> list[int]:
    """A number for each of the first beginnings of a prompt."""
    found, last = [], 0
    for token in tokens[:count]:
        last = hash((last, token))
        found.append(last)
    return found


def words(seed: int, length: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(1000) for _ in range(length)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True),
    st.integers(14, 60),
    st.integers(1, 3),
    st.sampled_from([5, 33, 64, 100]),
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(1, 250), st.integers(1, 90), st.integers(0, 25)),
        min_size=1, max_size=9,
    ),
)  # fmt: skip
def test_every_token_finds_what_it_sees(
    kinds: list[Window], pages: int, at_once: int, chunk: int, asked: list[tuple[int, int, int, int, int]]
) -> None:
    """Prompts with common beginnings, prompts that are there already, answers that go on, some cancelled; in few pages,
    so that sequences make room for others."""
    cache, done = Cache(kinds, pages=pages, chunk=chunk, at_once=at_once), []
    for how, seed, length, new, steps in asked:
        common = words(0, 70 + 9 * seed)
        prompt = [*common, *words(seed, length)][:300] if how < 3 or not done else list(done[seed % len(done)].tokens)
        prompt, new = prompt[: PAGE * pages - 91], min(new, 90)
        sequence = cache.add(prompt, new)
        done.append(sequence)
        for _ in range(steps):
            cache.step()
        if how == 1:
            cache.scheduler.finish(done[seed % len(done)])
            cache.check()
    cache.run()


def lengths() -> Iterator[tuple[Window, int]]:
    for window in (*KINDS, Window(128), Window(1024), Window(8192, in_chunks=True)):
        for chunk in (1, 31, 32, 33, 512):
            yield window, chunk


@pytest.mark.parametrize(("window", "chunk"), lengths())
def test_a_pool_is_large_enough_by_hand(window: Window, chunk: int) -> None:
    """For one sequence of any length: pages from the first that is needed to the last that is written."""
    held = most = 0
    for computed in range(0, 20000, chunk):
        first = window.first_page(computed)
        assert first * PAGE <= window.begin(max(0, computed - SLACK))
        held = max(held, -(-computed // PAGE) - first)
        most = max(most, -(-(computed + chunk) // PAGE) - first)
    assert held < window.held(10**6)
    assert most <= window.pool(10**6, 1, chunk) - 1
    assert window.held(40) == min(2, window.held(10**6))


def test_pages_that_others_may_go_on_from_stay() -> None:
    """128 tokens are 4 pages. A prompt of 40 pages and the 8 after it: dropped are all but the last five; idle pages
    go, but those before 1, 2, 4, 8, 16, 32 pages and before the prompt's end."""
    cache = Cache([Window(4 * PAGE)], chunk=PAGE)
    (pool,) = cache.windows.pools
    sequence = cache.add(words(1, 40 * PAGE), 9 * PAGE)
    while sequence in cache.scheduler.running + cache.scheduler.waiting and len(sequence.completion) < 8 * PAGE:
        cache.step()
    one = sequence.windows[0]
    assert one.first == 43, "of 1535 tokens: behind 128 and 32 more"
    assert len(one.pages) == 48
    worth = {0, 1, 2, 3, *range(4, 8), *range(12, 16), *range(28, 32), *range(35, 40)}
    places = {digest: place for place, digest in enumerate(sequence.digests)}
    goes = [places[pool.table.digest_of[page]] for page in pool.table.idle.new]
    assert set(goes[-len(worth) :]) == worth or pool.pages - 1 < len(worth) + 5
    assert goes[: len(goes) - len(worth & set(goes))] == sorted(set(goes) - worth, reverse=True), "the newest first"


def test_a_beginning_that_is_shared_is_found_from_the_third_prompt_on() -> None:
    """37 pages are common. The first prompt kept what one of 32 needs; the second computed the rest again and noted
    where it went its own way."""
    common, found = words(2, 37 * PAGE), []
    cache = Cache([Window(4 * PAGE)], pages=4000, sequences=1, at_once=12)
    for seed in range(4):
        sequence = cache.add([*common, *words(50 + seed, 20 * PAGE)], 4)
        cache.run()
        found.append(sequence.reused // PAGE)
        for other in range(3):  # push out what goes first
            cache.add(words(100 + 10 * seed + other, 6 * PAGE), 2)
            cache.run()
    assert found[0] == 0
    assert found[1] in (32, 37)
    assert found[2:] == [37, 37]


@pytest.mark.parametrize("window", KINDS, ids=str)
def test_the_newest_tokens_can_be_taken_back(window: Window) -> None:
    """Up to 16 of every pass, as of a draft that was refused: what the next token sees is still there, the pages are
    those from before, and none is lost."""
    chance, windows = random.Random(5), Windows([(window, window.pool(10**6, 1, 17))], 17)
    (pool,), held = windows.pools, windows.start()
    computed, placed = 0, dict[int, int]()
    while computed < 600:
        windows.extend(held, computed + 17)
        (one,) = held
        for place in range(computed // PAGE, len(one.pages)):
            assert placed.setdefault(place, one.pages[place]) == one.pages[place]
        windows.advance(held, computed + 17, [])  # all that was written counts, until it is taken back
        computed += 17 - chance.randrange(17)
        for position in range(window.begin(computed), computed + 1):
            assert one.pages[position // PAGE] == placed[position // PAGE] > 0
    windows.release(held)
    assert pool.table.available == pool.pages - 1


def test_room_is_counted_by_what_sequences_come_to_hold() -> None:
    windows = Windows([(Window(8), Window(8).pool(1000, 2, 64))], 64)
    assert windows.have_room([1000, 1000])
    assert not windows.have_room([1000, 1000, 1000])
    assert windows.have_room([1000, 40, 40]), "two pages each"
    assert Windows().have_room([10**9] * 99)
    assert windows.tightest(64, PageTable(9)) == (2, 9)
    assert windows.tightest(300, PageTable(99)) == (6, 10)
