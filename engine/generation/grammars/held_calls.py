"""A grammar that sleeps while the model writes freely, and holds from the text on that a call begins with.

Asleep it is asked nothing: the sampler passes it by, and the text of each token is looked at once, for the last sign of
what wakes it. It sleeps again when its call is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from .grammar import Constraint, Waking

log = logging.getLogger("headrace")
MOST = 300  # characters before a name that are kept


class HeldCalls(Constraint):
    """A grammar of calls on its way through one answer.

    make: a matcher at its beginning. tokens_of: the tokens of a text. is_draft: whether calls that are written now are
    drafts, as within reasoning.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        tokens_of: Callable[[str], list[int]],
        ends: Sequence[int],
        waking: Waking,
        is_draft: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(None, ends, lambda: False)
        self._make, self._tokens_of, self._waking, self._is_draft = make, tokens_of, waking, is_draft
        self._tail = ""

    @property
    def is_awake(self) -> bool:
        """Whether a call is being written."""
        return self._matcher is not None

    def saw(self, text: str) -> None:
        """Takes in the text of a token that was taken."""
        if self._matcher is not None:
            self._look_after()
            return
        self._tail = (self._tail + text)[-MOST:]
        if self._waking.last not in text:
            return
        found = list(self._waking.pattern.finditer(self._tail))
        if found and not self._is_draft():
            rest, self._tail = self._tail[found[-1].end() :], ""
            self._wake(rest)

    def _wake(self, rest: str) -> None:
        """Holds what follows; rest: what the last token has behind the mark. If that is no call already, the text stays
        free: the reader of the dialect says what it is."""
        matcher = self._make()
        tokens = self._tokens_of(rest) if rest else []
        if matcher.try_consume_tokens(tokens) == len(tokens):
            self._matcher = matcher

    def _fail(self, token: int) -> int:
        """The text is free again: what a model says in its own words is no error."""
        log.warning("a call is not held to its tool any more: %s", self._matcher.get_error())
        self._matcher = None
        return token

    def _look_after(self) -> None:
        if self._waking.repeats and self._matcher.is_stopped():
            self._matcher = None
