"""Pages of the KV cache on disk: what was computed once is read back when a prompt begins like it, also by a later run.

A prompt that waits asks what there is of it. Pages that the cache in RAM does not have are read by a thread, and put
into the cache between passes as known pages that are nobody's; then the prompt is admitted and finds them there as it
finds any. Of a model with recurrent states pages count only up to a kept state, so one is read with them; of layers
over a window the pages of the last one.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...model.kv_cache import Digest, KVCache, PageTable, work_out
from ...model.windows import Windows
from ..schedule.state_slots import StateSlots
from ..sequence import Sequence
from .page_files import PAGE_KIND, STATE_KIND, WINDOW_KIND, PageFiles
from .reader import Arrived, Fetch, Reader
from .writer import Item, Writer

WAIT_S = 0.05  # for what is being read, where nothing else is to be done


class KVDisk:
    """Between one model's cache and its files. In the thread of the passes, but for the two threads of its own."""

    def __init__(
        self,
        files: PageFiles,
        cache: KVCache,
        table: PageTable,
        states: StateSlots | None,
        windows: Windows | None = None,
    ) -> None:
        self.files, self.cache, self.table, self.states = files, cache, table, states
        self.windows = windows or Windows()
        self.tables = [table, *(pool.table for pool in self.windows.pools)]  # by the kind of layers
        self.kinds = [PAGE_KIND, *(f"{WINDOW_KIND}{kind}" for kind in range(1, len(self.tables)))]
        self.writer = Writer(files)
        sizes = {name: _sizes(cache.page_parts(0, kind)) for kind, name in enumerate(self.kinds)}
        self.reader = Reader(files, sizes | {STATE_KIND: _sizes(cache.state_parts(0)) if states else []})
        self.restored = 0  # pages and states that were read
        self.current: Fetch | None = None  # what is being read
        for kind, one in enumerate(self.tables):
            one.on_known = partial(self._keep_page, kind)

    def close(self) -> None:
        """Writes what waits; nothing is kept from then on."""
        for table in self.tables:
            table.on_known = None
        self.reader.close()
        self.writer.close()

    # ---- to the disk

    def _keep_page(self, kind: int, page: int, digests: list[Digest], place: int) -> None:
        """A page of a kind of layers was computed; digests: of its prompt, where it has this place."""
        before, taken = digests[place - 1] if place else None, self.tables[kind].taken
        is_same, parts = partial(_is, taken, page, taken[page]), partial(self.cache.page_parts, page, kind)
        self.writer.put(Item(digests[place], self.kinds[kind], parts, is_same, before))

    def keep_state(self, digest: Digest | None) -> None:
        """Keeps a state that a later prompt can go on from."""
        slot = None if self.states is None or digest is None else self.states.slot_of.get(digest)
        if slot is None or self.states is None or digest is None:
            return
        is_same = partial(_is, self.states.taken, slot, self.states.taken[slot])
        self.writer.put(Item(digest, STATE_KIND, partial(self.cache.state_parts, slot), is_same, digest))

    # ---- from the disk

    def has_read(self, sequence: Sequence, room: int) -> bool:
        """Whether all that the disk has of a sequence that waits is in the cache; until then it is held for it. One at
        a time: what is read for many that wait would push out what is read for the first. room: pages that may be
        taken; where that is too little nothing is read yet."""
        if sequence.fetch is None or (sequence.fetch.is_queued and self.current is None):
            sequence.fetch = self._ask(work_out(sequence.tokens, sequence.prompt_digests, sequence.salt), room)
        if sequence.fetch is None:
            return True
        if sequence.fetch.is_done:
            self.let_go(sequence)
        return sequence.fetch.is_done

    def _ask(self, digests: list[Digest], room: int) -> Fetch | None:
        """Asks for what is to be read for a prompt, or says that it is to be asked for later. None: no room."""
        fetch, there = self._missing(digests)
        if fetch.is_done:
            return fetch
        if self.current is not None:
            return Fetch(is_queued=True)
        known = [self.table.page_of[one] for one in digests[:there] if one in self.table.page_of]
        if len(fetch.pages) + sum(page in self.table.idle for page in known) > room:
            return None
        self.current = fetch
        for page in known:
            self._hold(fetch, page)
        self.reader.ask(fetch)
        return fetch

    def _missing(self, digests: list[Digest]) -> tuple[Fetch, int]:
        """What is to be read for a prompt, and how many of its pages there will be."""
        known = self.table.page_of
        there = next((i for i, one in enumerate(digests) if one not in known and not self.files.has(one)), len(digests))
        self._use(0, digests, range(there))
        state, may_end = None, None if self.states is None else self._has_state
        there = self.windows.longest(digests[:there], may_end, self._has_window)
        if self.states is not None:
            state = digests[there - 1] if there and digests[there - 1] not in self.states else None
            self.files.use(digests[there - 1 : there], STATE_KIND)
        pages = [one for one in digests[:there] if one not in known]
        windows = self._missing_windows(digests[:there])
        return Fetch(pages, windows, state, is_done=not pages and not windows and state is None), there

    def _missing_windows(self, digests: list[Digest]) -> list[tuple[Digest, str]]:
        """Pages of the last windows of a prompt's beginning that are to be read, and their kind."""
        found = []
        for kind, pool in enumerate(self.windows.pools, 1):
            places = range(pool.seen_from(len(digests)), len(digests))
            self._use(kind, digests, places)
            known = pool.table.page_of
            found += [(digests[place], self.kinds[kind]) for place in places if digests[place] not in known]
        return found

    def _use(self, kind: int, digests: list[Digest], places: range) -> None:
        """Pages of a prompt are in use; those in memory are written if they could not be before."""
        self.files.use(digests[places.start : places.stop], self.kinds[kind])
        known = self.tables[kind].page_of
        for place in places:
            if digests[place] in known:
                self._keep_page(kind, known[digests[place]], digests, place)

    def _has_window(self, pool: int, digest: Digest) -> bool:
        return digest in self.tables[pool + 1].page_of or self.files.has(digest, self.kinds[pool + 1])

    def let_go(self, sequence: Sequence) -> None:
        """All is there for a sequence, or it will not run: what was held for it is held no more."""
        fetch = sequence.fetch
        if fetch is None or fetch is not self.current:
            return
        self.current, fetch.is_cancelled = None, True
        self.table.release(fetch.held)
        fetch.held = []

    def _hold(self, fetch: Fetch, page: int) -> None:
        self.table.hold(page)
        fetch.held.append(page)

    def _has_state(self, digest: Digest) -> bool:
        return (self.states is not None and digest in self.states) or self.files.has(digest, STATE_KIND)

    def put_in(self) -> None:
        """Puts what was read into the cache; between two passes."""
        for one in self.reader.take():
            if one.digest is None:
                one.fetch.is_done = True
            elif one.kind == STATE_KIND:
                self._put_state(one.digest, one)
            else:
                self._put_page(one.digest, one)

    def _put_page(self, digest: Digest, arrived: Arrived) -> None:
        """Pages of windows are held by nobody: those that run are sure of their room there."""
        kind = self.kinds.index(arrived.kind)
        table = self.tables[kind]
        if digest not in table.page_of and table.available:
            page = table.adopt(digest)
            _fill(self.cache.page_parts(page, kind), arrived)
            if kind == 0 and not arrived.fetch.is_cancelled:
                self._hold(arrived.fetch, page)
            self.restored += 1

    def _put_state(self, digest: Digest, arrived: Arrived) -> None:
        if self.states is not None and digest not in self.states:
            slot = self.states.reserve()
            _fill(self.cache.state_parts(slot), arrived)
            self.states.name(digest, slot)
            self.restored += 1

    def wait(self) -> None:
        """Waits a moment for what is being read."""
        self.reader.news.wait(WAIT_S)


def _is(numbers: list[int], place: int, number: int) -> bool:
    return numbers[place] == number


def _sizes(parts: list[Tensor]) -> list[int]:
    return [part.nbytes for part in parts]


def _fill(parts: list[Tensor], arrived: Arrived) -> None:
    for part, flat in zip(parts, arrived.parts, strict=True):
        part.copy_(flat.view(part.dtype).view(part.shape))
