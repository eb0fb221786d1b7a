"""Pages in memory that is shared with experts: as many are open as were needed lately, and the others hold experts.

Where no page is free more are opened, before what prompts left is forgotten: that costs experts, which come again one
by one, and a prompt would be computed anew. Pages are closed when none of them was needed for LONG passes: that no
sequence owned, and whose content is older than that. They are closed from the last one on, so that a page in use keeps
those before it open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..experts.cache.shared_memory import EXTENT
from .kv_cache import Digest, PageTable

LONG, EVERY = 1024, 64  # passes

Lend = Callable[[int, int], None]  # pages that were open, pages that are


class LentPages(PageTable):
    """lend: makes room for pages, or takes it back, between two passes."""

    def __init__(self, numbers: range, lend: Lend) -> None:
        super().__init__(numbers)
        self.numbers, self.lend, self.open, self.passes = numbers, lend, 0, 0
        self.free.clear()
        self.idle_since: dict[int, int] = {}  # of pages that nobody owns and whose content is known, the pass
        self.peaks: deque[int] = deque(maxlen=LONG // EVERY)  # pages that had to be open, at each look
        self._open(1)

    @property
    def available(self) -> int:
        """Pages that can be allocated now."""
        return super().available + len(self.numbers) - self.open

    def allocate(self, count: int) -> list[int]:
        """Takes pages, and opens some if need be."""
        self._open(count - len(self.free))
        return super().allocate(count)

    def _take(self) -> int:
        self._open(1 - len(self.free))
        page = super()._take()
        self.idle_since.pop(page, None)
        return page

    def adopt(self, digest: Digest) -> int:
        """A page for content that is known, and nobody's."""
        page = super().adopt(digest)
        self.idle_since[page] = self.passes
        return page

    def hold(self, page: int) -> None:
        """One owner more of a known page."""
        super().hold(page)
        self.idle_since.pop(page, None)

    def release(self, pages: list[int], goes_first: bool = False) -> None:
        """Gives pages back."""
        super().release(pages, goes_first)
        self.free.sort(reverse=True)  # the first pages are taken first, so that the last ones can be closed
        self.idle_since.update(dict.fromkeys((page for page in pages if page in self.idle), self.passes))

    def between_passes(self) -> None:
        """Another pass is over: now and then it is seen to that no more are open than were needed."""
        self.passes += 1
        if self.passes % EVERY:
            return
        self.peaks.append(self._needed())
        if len(self.peaks) == self.peaks.maxlen:
            self._close(_whole(max(self.peaks)))

    def _needed(self) -> int:
        """Pages up to the last one that is owned, or whose content is young."""
        long_ago = self.passes - LONG
        for count in range(self.open, 0, -1):
            page = self.numbers[count - 1]
            if self.owners[page] or self.idle_since.get(page, long_ago) > long_ago:
                return count
        return 1

    def _open(self, more: int) -> None:
        """At least so many pages more, as far as there are any."""
        wanted = min(_whole(self.open + more), len(self.numbers))
        if more > 0 and wanted > self.open:
            self.lend(self.open, wanted)
            self.free[:0] = self.numbers[self.open : wanted][::-1]
            self.open = wanted

    def _close(self, wanted: int) -> None:
        """So many pages stay open."""
        if wanted >= self.open:
            return
        closed = self.numbers[wanted : self.open]
        for page in closed:
            self._forget(page)
        self.free = sorted((page for page in self.free if page not in closed), reverse=True)
        self.lend(self.open, wanted)
        self.open = wanted

    def _forget(self, page: int) -> None:
        """Its content is lost: whoever reads it meanwhile, to keep it on a disk, finds that out."""
        self.taken[page] += 1
        self.idle.remove(page)
        self.idle_since.pop(page, None)
        digest = self.digest_of.pop(page, None)
        if digest is not None:
            del self.page_of[digest]


def _whole(pages: int) -> int:
    """The same in whole extents."""
    return -(-pages // EXTENT) * EXTENT
