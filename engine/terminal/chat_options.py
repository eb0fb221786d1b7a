"""Whether `headrace generate` completes a text as it is, or answers in a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import OptionError
from ..option import COMMON, option


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """interactive: a conversation. chat: each prompt is a question of its own."""

    interactive: bool = option(False, COMMON, "", "chat, keeping the history", short="-i")
    chat: bool = option(False, COMMON, "", "put the prompt into the model's chat template")
    system: str | None = option(None, COMMON, "TEXT", "system message of a chat")

    def check(self, prompts: Sequence[str], as_json: bool) -> None:
        """Raises OptionError unless this goes with the prompts and the output that were asked for."""
        if not prompts and not self.interactive:
            raise OptionError('no prompt: headrace generate MODEL "text", or -i for a chat')
        if self.interactive and (prompts or as_json):
            odd = "PROMPTS" if prompts else "--json"
            raise OptionError(f"-i asks for prompts and prints text as it comes: leave out {odd}")
        if self.system and not (self.chat or self.interactive):
            raise OptionError("--system is part of a chat: add --chat, or -i")
