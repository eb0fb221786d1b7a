"""How an answer looks while it comes: reasoning dimmed, then what is said, then the calls of tools, a line each."""

from __future__ import annotations

from ....loaders.tokens.dialects.events import CallArguments, CallEnd, CallStart, Event, Reasoning, Text
from .. import output


class AnswerView:
    """Shows the events of one answer on standard output."""

    def __init__(self) -> None:
        self.last: type[Event] | None = None

    def show(self, event: Event) -> None:
        """Shows one event."""
        if isinstance(event, (Reasoning, Text)):
            self._part(type(event))
            output.write(event.text, dim=isinstance(event, Reasoning))
        elif isinstance(event, CallStart):
            self._part(CallStart)
            output.write(f"[{event.name} ")
        elif isinstance(event, CallArguments):
            output.write(event.piece)
        elif isinstance(event, CallEnd):
            output.write("]")

    def end(self) -> None:
        """Ends the answer's last line."""
        output.write("\n")

    def _part(self, kind: type[Event]) -> None:
        """Begins a part: reasoning, text, or a call."""
        if self.last is not None and (self.last is not kind or kind is CallStart):
            output.write("\n" if self.last is kind else "\n\n")
        self.last = kind
