"""Pages with known content that nobody owns: which of them goes first when room is needed.

By what it would cost to lose them. A page that was found again once is likely to be found again: an agent's system
prompt, a chat's history. One that never was may be a title's, of which many come and none is asked for twice. So of
those that were never found again the one used longest ago goes first, unless the others take more than MOST_AGAIN of
the room: what was useful for long must not keep out what is new. Knows numbers of pages, no content.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_AGAIN = 2 / 3  # of idle pages, for those that were found again


class IdlePages:
    """Two queues, each least recently used first."""

    def __init__(self) -> None:
        self.new: OrderedDict[int, None] = OrderedDict()
        self.again: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.new) + len(self.again)

    def __contains__(self, page: object) -> bool:
        return page in self.new or page in self.again

    def add(self, page: int, was_found: bool, goes_first: bool = False) -> None:
        """A page becomes idle. was_found: whether a prompt has taken it over since it was computed. goes_first: it is
        given away before all others."""
        if goes_first:
            self.new[page] = None
            self.new.move_to_end(page, last=False)
        else:
            (self.again if was_found else self.new)[page] = None

    def remove(self, page: int) -> None:
        """It has an owner."""
        self.new.pop(page, None)
        self.again.pop(page, None)

    def pop(self) -> int:
        """The page whose room is given away; there is one."""
        too_many = len(self.again) > MOST_AGAIN * len(self)
        return (self.again if too_many or not self.new else self.new).popitem(last=False)[0]
