"""Pages of layers that see a window alone: a pool for each kind of window, of which a sequence holds the end.

    page            0    1    2    3    4    5    6
    full layers     a    b    c    d    e    f    g        all stay, as long as the sequence runs
    a window        -    -    -    -    p    q    r        what lies behind the window is dropped, entry by entry

Tables keep their absolute places: entry i is the page of tokens [i PAGE, (i + 1) PAGE), 0 where it was dropped. Page 0
belongs to nobody: it holds zeros, or what rows of a graph without a sequence write, and no token sees it.

A sequence may take back its newest SLACK tokens: `extend` and `advance` go by the tokens that it has now.

A prefix can be taken over where the pages of its last window are still there. So pages are not all the same when they
are dropped: those at the end of a prompt, where its tokens were found before, where it began to differ from what was
known, and wherever it has twice as many pages as before stay idle as any known page does. Others go first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..ledger.windows import Window, pages_for
from .kv_cache import PAGE, Digest, PageTable


@dataclass
class Held:
    """Pages of one sequence in one pool, by place; those before `first` were dropped, or never taken."""

    pages: list[int]
    first: int = 0


class WindowPool:
    """The pages of layers with one window. pages: of the pool, with the one that belongs to nobody."""

    def __init__(self, window: Window, pages: int) -> None:
        self.window, self.pages = window, pages
        self.table = PageTable(pages)
        self.table.allocate(1)  # page 0

    def seen_from(self, place: int) -> int:
        """The first page that a token sees which begins page `place`."""
        return self.window.begin(place * PAGE) // PAGE

    def take_over(self, digests: list[Digest]) -> Held:
        """What a prompt needs that goes on behind known pages."""
        first = min(len(digests), self.seen_from(len(digests)))
        pages = [self.table.page_of[digest] for digest in digests[first:]]
        for page in pages:
            self.table.hold(page)
        return Held([0] * first + pages, first)

    def drop(self, held: Held, computed: int, points: Iterable[int]) -> None:
        """Gives back what no later token sees. points: places where another prompt may go on."""
        for place in range(held.first, min(self.window.first_page(computed), len(held.pages))):
            doubled = 1 << place.bit_length()
            is_kept = any(self.seen_from(point) <= place < point for point in (*points, doubled))
            self.table.release([held.pages[place]], goes_first=not is_kept)
            held.pages[place], held.first = 0, place + 1


class Windows:
    """The pools of a model, and what its sequences hold there; none where all layers see everything. chunk: most new
    tokens of a pass."""

    def __init__(self, pools: Sequence[tuple[Window, int]] = (), chunk: int = 0) -> None:
        self.pools = [WindowPool(*one) for one in pools]
        self.chunk = chunk

    def start(self) -> list[Held]:
        """Of a sequence without tokens in the cache."""
        return [Held([]) for _ in self.pools]

    def have_room(self, longest: Iterable[int]) -> bool:
        """Whether sequences that come to hold so many tokens can all run, whatever passes they share."""
        lengths = list(longest)
        return all(
            sum(map(pool.window.held, lengths)) + pages_for(max(self.chunk, len(lengths))) < pool.pages
            for pool in self.pools
        )

    def tightest(self, tokens: int, pages: PageTable) -> tuple[int, int]:
        """Pages that so many tokens need, chunk by chunk, and how many can be had: in the pool, or in the `pages` of
        layers that see everything, where there are fewest to spare."""
        need, chunk = pages_for(tokens), pages_for(self.chunk)
        found = [(min(need, pool.window.held(tokens) + chunk), pool.table.available) for pool in self.pools]
        return max([(need, pages.available), *found], key=lambda one: one[0] - one[1])

    def longest(
        self,
        digests: list[Digest],
        may_end: Callable[[Digest], bool] | None = None,
        known: Callable[[int, Digest], bool] | None = None,
    ) -> int:
        """How many of a prompt's first pages, known in full layers, can be taken over: at their end the last window is
        there, too. may_end: whether they may end there; None: anywhere. known(pool, digest): whether a page is there;
        None: in the pool."""
        found, missing = 0, [-1] * len(self.pools)
        for place, digest in enumerate(digests):
            for i, pool in enumerate(self.pools):
                if not (digest in pool.table.page_of if known is None else known(i, digest)):
                    missing[i] = place
            is_whole = all(last < pool.seen_from(place + 1) for last, pool in zip(missing, self.pools, strict=True))
            if is_whole and (may_end is None or may_end(digest)):
                found = place + 1
        return found

    def take_over(self, digests: list[Digest]) -> list[Held]:
        """The last windows of known pages; `longest` has said that they are there."""
        return [pool.take_over(digests) for pool in self.pools]

    def has_spare(self, held: list[Held], tokens: int, running: int) -> bool:
        """Whether a sequence can have pages for so many tokens that nobody else may need in the same pass, with a chunk
        of prompts and so many sequences that run."""
        taken = running + pages_for(self.chunk)
        return all(
            pages_for(tokens) <= len(one.pages) or pages_for(tokens) - len(one.pages) + taken <= pool.table.available
            for pool, one in zip(self.pools, held, strict=True)
        )

    def extend(self, held: list[Held], tokens: int) -> None:
        """Gives a sequence pages for its first `tokens`, of which it has the beginning."""
        for pool, one in zip(self.pools, held, strict=True):
            one.pages += pool.table.allocate(max(0, pages_for(tokens) - len(one.pages)))

    def advance(
        self, held: list[Held], computed: int, digests: list[Digest], known: int = 0, points: Iterable[int] = ()
    ) -> None:
        """So many tokens of a sequence are in the cache now: makes its full pages known from the `known`th on, and
        drops those that no later token sees."""
        for pool, one in zip(self.pools, held, strict=True):
            for place in range(max(known, one.first), len(digests)):
                pool.table.make_known(one.pages[place], digests, place)
            pool.drop(one, computed, points)

    def release(self, held: list[Held]) -> None:
        """Gives all back; the last window stays idle, so that a later prompt finds it."""
        for pool, one in zip(self.pools, held, strict=False):
            pool.table.release(one.pages[one.first :])
