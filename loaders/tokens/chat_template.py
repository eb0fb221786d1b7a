"""How a chat becomes one prompt: chat templates, in the dialect of jinja that transformers has made of it.

Chat templates are code written by strangers and run in a sandbox (`template_sandbox.py`) that keeps a template away
from Python and the machine, and bounds its time and memory.
This file does not know in which file of a model its template is, nor what the tokens in it mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError

from ...errors import TokenizerError
from .conversation import REASONING, Message, Ways, normalise, tools_of
from .template_sandbox import SECONDS, Sandbox, bounded

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
PROBE, TOOL = "probed_key", "probed_tool"  # in messages that show how a template writes them
THOUGHTS = (REASONING, "thinking", "reasoning")
_READS = r"(?:\.|\[['\"]|get\(['\"])%s\b"  # a key of a message
END = "\ue000END\ue000"  # behind the text of a message that goes on; of characters that mean nothing
_TURNS = ("user", "assistant", "user")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template's text, the special tokens that it may spell (`bos_token`), and the name that errors give."""

    text: str
    tokens: Mapping[str, str]
    source: str

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Any = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        continues: bool = False,
    ) -> str:
        """The prompt for `messages`. tools: functions that may be called. arguments: what else the template reads, as
        enable_thinking. continues: it ends with the text of the last message, which the model goes on with.

        Raises TokenizerError if a message or tool is none, if the template refuses the messages, is faulty, or tries
        what the sandbox forbids.
        """
        arguments = arguments or {}
        if taken := RESERVED & {*arguments}:
            raise TokenizerError(f"{min(taken)} is no argument of a template: it is given by the chat itself")
        chat = normalise(messages, self.ways)
        if continues:
            chat[-1] = _open(chat[-1])
        values = {"documents": None, **self.tokens, **arguments, "messages": chat, "tools": tools_of(tools)}
        try:
            with bounded():
                text = self._compiled.render(values, add_generation_prompt=add_generation_prompt)
        except TimeoutError:
            raise self._too_slow() from None
        # A template is a stranger's code: besides jinja's errors it can raise whatever its expressions raise.
        except Exception as error:
            kind = "does what the sandbox forbids" if isinstance(error, SecurityError) else "failed"
            raise TokenizerError(
                f"the chat template of {self.source} {kind}: {error or type(error).__name__}; "
                "check the roles and their order, or give the prompt as plain text"
            ) from error
        if not continues:
            return text
        said, end, _ = text.rpartition(END)
        if not end:
            raise TokenizerError(f"the chat template of {self.source} leaves the last message out: it cannot go on")
        return said

    def _too_slow(self) -> TokenizerError:
        return TokenizerError(
            f"the chat template of {self.source} takes longer than {SECONDS:g} s: give another with "
            "--chat-template, or the prompt as plain text"
        )

    @cached_property
    def _compiled(self) -> Template:
        return Sandbox().from_string(self.text)

    @cached_property
    def ways(self) -> Ways:
        """How it reads messages, found out with a few of them: a template says so nowhere."""
        return Ways(
            as_mapping=self._takes_mappings(),
            developer="developer" in self.text,
            late_system=self._takes_late_system(),
            joint=self._joint(),
            thoughts=tuple(key for key in THOUGHTS if re.search(_READS % key, self.text)) or (REASONING,),
            null_beside_calls=self._wants_null(),
        )

    def _takes_mappings(self) -> bool:
        """Whether arguments of calls are to be mappings: unless that fails, or gives Python's spelling of one, and text
        does not. Text alone says little: a template that spells mappings in its own way may print it as it is."""
        if "tool_calls" not in self.text:
            return True
        mapping, text = (self._probe(_called(value)) for value in ({PROBE: "x"}, json.dumps({PROBE: "x"})))
        return (PROBE in mapping and f"'{PROBE}'" not in mapping) or PROBE not in text

    def _wants_null(self) -> bool:
        """Whether calls are written only beside content that is null, as R1's template has it."""
        if "tool_calls" not in self.text:
            return False
        forms: tuple[Any, Any] = ({}, "{}")
        with_text, with_null = (
            any(TOOL in self._probe(_called(form, content)[:2]) for form in forms) for content in ("", None)
        )
        return with_null and not with_text

    def _takes_late_system(self) -> bool:
        """Whether a system message behind others is written where it stands. Some templates refuse it, leave it out, or
        put it in front; where not even the others are written, nobody can tell."""
        others = [{"role": role, "content": f"{PROBE}-{place}"} for place, role in enumerate(_TURNS)]
        late = {"role": "system", "content": f"{PROBE}-late"}
        written = self._probe([*others[:2], late, others[2]])
        places = [written.find(one["content"]) for one in (*others[:2], late, others[2])]
        return (-1 not in places and places == sorted(places)) or not self._probe(others)

    def _joint(self) -> str:
        """What stands between text parts: what the template itself puts there, if it reads parts, else a line break."""
        parts = [{"type": "text", "text": f"{PROBE}-{name}"} for name in "ab"]
        match = re.search(rf"{PROBE}-a(\s*){PROBE}-b", self._probe([{"role": "user", "content": parts}]))
        return match.group(1) if match else "\n"

    def _probe(self, messages: list[dict[str, Any]]) -> str:
        """What the template writes of these messages; "" if it fails."""
        try:
            with bounded():
                return self._compiled.render(messages=messages, tools=None, documents=None, **self.tokens)
        except TimeoutError:
            raise self._too_slow() from None
        # A stranger's code: that it fails in whatever way is the answer to what is asked here.
        except Exception:
            return ""


def _open(message: dict[str, Any]) -> dict[str, Any]:
    """A message that goes on behind its text."""
    if message.get("tool_calls"):
        raise TokenizerError("the last message of the chat calls tools: only text can be gone on with")
    return {**message, "content": f"{message['content'] or ''}{END}"}


def _called(arguments: Any, content: str | None = "") -> list[dict[str, Any]]:
    """A conversation in which a tool was called."""
    call = {"id": "000000000", "type": "function", "function": {"name": TOOL, "arguments": arguments}}
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "000000000", "name": TOOL, "content": "b"},
    ]


# What chat templates expect of jinja beyond jinja itself. The dialect is transformers' own.
