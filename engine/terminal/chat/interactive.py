"""An interactive conversation: questions from standard input, answers to standard output.

What an answer said, thought and called goes into the history as such. After calls the user speaks for the tools: the
next lines are their answers, one each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ....errors import ContextOverflow, HeadraceError, short
from ...config import TO_THE_END, SamplingParams
from ...generation.chat import ChatCompletion
from ...llm import LLM
from ..chat_options import ChatOptions
from .answer_view import AnswerView

Say = Callable[[str, str], None]
HELP = "chat: /reset forgets the history, /exit leaves, Ctrl-C stops an answer"


class Conversation:
    """The history of a chat. say(text, style): a line about it, on standard error."""

    def __init__(self, llm: LLM, params: SamplingParams, chosen: ChatOptions, say: Say) -> None:
        self.llm, self.params, self.chosen, self.say = llm, params, chosen, say
        self.results: list[ChatCompletion] = []
        self.reset()

    def reset(self) -> None:
        """Forgets the history."""
        self.messages = list(self.chosen.start)
        self.calls: list[dict[str, Any]] = []  # of the last answer, which no tool has answered yet
        self.answered = len(self.messages)  # messages up to the last answer

    def take(self, line: str) -> None:
        """A line of the user: a question, or the answer of a tool. The model answers unless more tools have to."""
        if self.calls:
            call = self.calls.pop(0)
            named = {"tool_call_id": call["id"], "name": call["function"]["name"]}
            self.messages.append({"role": "tool", "content": line, **named})
        else:
            self.messages.append({"role": "user", "content": line})
        if not self.calls:
            self._answer()
        self._ask_for_tools()

    def _answer(self) -> None:
        """Shows the answer and appends it; an overflow is shown and takes the question back."""
        view, chosen = AnswerView(), self.chosen
        try:
            stream = self.llm.chat_stream(self.messages, self._params(), dialect=chosen.dialect, **chosen.settings)
            try:
                for event in stream:
                    view.show(event)
            except KeyboardInterrupt:
                stream.close()
            for event in stream.rest():
                view.show(event)
        except HeadraceError as error:
            self._take_back(error)
            return
        view.end()
        answer = stream.result
        if answer.finish_reason == "length":
            self.say(
                f"cut after {len(answer.token_ids)} tokens: -n allows more, --max-context and /reset make room", "dim"
            )
        self.results.append(answer)
        self.messages.append(answer.message)
        self.calls = list(answer.tool_calls) if answer.finish_reason == "stop" else []
        self.answered = len(self.messages)

    def _params(self) -> SamplingParams:
        """Those of the next answer. One without a limit takes half of what the context has left: a model that does not
        end would leave no room for another question."""
        if self.params.max_new_tokens != TO_THE_END:
            return self.params
        admission = self.llm.admission
        left = admission.room_behind(len(admission.chat(self.messages, **self.chosen.settings)))
        return replace(self.params, max_new_tokens=max(1, left // 2))

    def _take_back(self, error: HeadraceError) -> None:
        self.say(short(str(error)), "red")
        if isinstance(error, ContextOverflow):
            self.say("/reset forgets the history and makes room", "dim")
        del self.messages[self.answered :]
        self.calls = list(self.messages[-1].get("tool_calls") or []) if self.messages else []

    def _ask_for_tools(self) -> None:
        if self.calls:
            self.say(f"type what {self.calls[0]['function']['name']} answers", "dim")


def talk(llm: LLM, params: SamplingParams, chosen: ChatOptions, say: Say) -> list[ChatCompletion]:
    """A conversation until /exit or Ctrl-D; returns its answers."""
    conversation = Conversation(llm, params, chosen, say)
    say(HELP, "dim")
    while (line := _read_line()) is not None:
        if line == "/reset":
            conversation.reset()
        elif line:
            conversation.take(line)
    return conversation.results


def _read_line() -> str | None:
    """One line of the user; None at the end."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/exit" else line
