"""Pages of the KV cache on disk: what was computed once is read back when a prompt begins like it, also by a later run.

A prompt that waits asks what there is of it. Pages that the cache in RAM does not have are read by a thread, and put
into the cache between passes as known pages that are nobody's; then the prompt is admitted and finds them there as it
finds any. Of a model with recurrent states pages count only up to a kept state, so one is read with them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...model.kv_cache import Digest, KVCache, PageTable, work_out
from ..schedule.state_slots import StateSlots
from ..sequence import Sequence
from .page_files import PAGE_KIND, STATE_KIND, PageFiles
from .reader import Arrived, Fetch, Reader
from .writer import Item, Writer

WAIT_S = 0.05  # for what is being read, where nothing else is to be done


class KVDisk:
    """Between one model's cache and its files. In the thread of the passes, but for the two threads of its own."""

    def __init__(self, files: PageFiles, cache: KVCache, table: PageTable, states: StateSlots | None) -> None:
        self.files, self.cache, self.table, self.states = files, cache, table, states
        self.writer = Writer(files)
        self.reader = Reader(files, _sizes(cache.page_parts(0)), _sizes(cache.state_parts(0)) if states else ())
        self.restored = 0  # pages and states that were read
        self.current: Fetch | None = None  # what is being read
        table.on_known = self._known

    def close(self) -> None:
        """Writes what waits; nothing is kept from then on."""
        self.table.on_known = None
        self.reader.close()
        self.writer.close()

    # ---- to the disk

    def _known(self, page: int, digests: list[Digest]) -> None:
        """A page was computed; digests: of the prompt up to its end."""
        self._keep_page(page, digests, len(digests) - 1)

    def _keep_page(self, page: int, digests: list[Digest], place: int) -> None:
        before = digests[place - 1] if place else None
        is_same = partial(_is, self.table.taken, page, self.table.taken[page])
        self.writer.put(Item(digests[place], PAGE_KIND, partial(self.cache.page_parts, page), is_same, before))

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
        self.files.use(digests[:there])
        for place, digest in enumerate(digests[:there]):
            if digest in known:
                self._keep_page(known[digest], digests, place)  # if it could not be kept before
        state = None
        if self.states is not None:
            there = next((i for i in range(there, 0, -1) if self._has_state(digests[i - 1])), 0)
            state = digests[there - 1] if there and digests[there - 1] not in self.states else None
            self.files.use(digests[there - 1 : there], STATE_KIND)
        pages = [one for one in digests[:there] if one not in known]
        return Fetch(pages, state, is_done=not pages and state is None), there

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
            elif one.digest not in self.table.page_of and self.table.available:
                page = self.table.adopt(one.digest)
                _fill(self.cache.page_parts(page), one)
                if not one.fetch.is_cancelled:
                    self._hold(one.fetch, page)
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
