"""The grammar of an answer's calls, made of a dialect's forms and the schemas of the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .....errors import OptionError
from ..arguments import Tools
from ..channels import CHANNEL
from ..dialect import Dialect, Form
from ..lexer import Vocabulary
from .braces import BraceArguments
from .lark import ANY_TEXT, Lark
from .tags import TagArguments


@dataclass(frozen=True, kw_only=True)
class CallGrammar:
    """text: a grammar in Lark. wakes: behind which text it holds, where it does not from the beginning on; header: that
    text counts only behind this mark, with no other in between. repeats: it may begin again."""

    text: str
    wakes: str = ""
    header: str = ""
    repeats: bool = False


def grammar_of(
    dialect: Dialect,
    tools: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    *,
    several: bool = True,
    asleep: bool = False,
    or_else: Any = None,
    ends: Sequence[int] = (),
) -> CallGrammar:
    """A grammar of a call of one of the tools, or of several.

    asleep: it holds only behind the text that wakes it, and keywords that it does not know say nothing. or_else: or of
    an answer of this schema; without tools of such an answer alone. ends: tokens that end an answer. Raises OptionError
    for what cannot be written.
    """
    lark, known = Lark(vocabulary, ends, is_lenient=asleep), Tools([dict(one) for one in tools])
    forms = [form for form in dialect.forms if _goes_with(form, vocabulary)]
    if not forms:
        raise OptionError(f"calls cannot be held to their tools in the dialect {dialect.name}: it has no form for them")
    is_section, has_header = bool(forms[0].begin), dialect.style == "channels"
    if asleep:  # what was written before is written
        forms = [form for form in forms if _so_far(form) == _so_far(forms[0])]
    many = several and not has_header and (is_section or not asleep)
    writer = _Writer(lark, dialect, known)
    ways = [writer.calls(form, many, asleep) for form in forms if known]
    if or_else is not None:
        ways.append(f"{lark.text(forms[0].answer)} {lark.json(or_else)}" if forms[0].answer else lark.json(or_else))
    lead = None if asleep else forms[0].lead
    start = lark.rule(" | ".join(ways))
    if lead is not None:
        begin, end = lead
        start = f"({lark.text(begin)} {lark.free(lark.terminal(ANY_TEXT), end)})? {start}"
    return CallGrammar(
        text=lark.whole(start),
        wakes=forms[0].wakes if asleep else "",
        header=CHANNEL if has_header and asleep else "",
        repeats=asleep and several,
    )


def _goes_with(form: Form, vocabulary: Vocabulary) -> bool:
    def is_token(text: str) -> bool:
        return vocabulary.token_of(vocabulary.spell(text)) is not None

    return all(map(is_token, form.needs)) and not any(map(is_token, form.lacks))


def _so_far(form: Form) -> str:
    """What stands before that which wakes a grammar."""
    return (form.begin + form.before).partition(form.wakes)[0]


class _Writer:
    """Writes calls of some tools."""

    def __init__(self, lark: Lark, dialect: Dialect, tools: Tools) -> None:
        self.lark, self.dialect, self.tools = lark, dialect, tools

    def calls(self, form: Form, many: bool, asleep: bool) -> str:
        """All calls of an answer in one form."""
        first = form.begin + form.before
        if asleep:
            first = first.partition(form.wakes)[2]
        after = "" if form.after and self.lark.is_end(form.after) else form.after
        one = self.lark.rule(" | ".join(self._call(form, name) for name in self.tools))
        more = f"({self.lark.text(form.after + form.between + form.before)} {one})*" if many else ""
        ended = self.lark.text(after + form.end) if after + form.end else ""
        return self.lark.rule(" ".join(filter(None, [self.lark.text(first) if first else "", one, more, ended])))

    def _call(self, form: Form, tool: str) -> str:
        """A call from its name to its arguments."""
        name = json.dumps(tool, ensure_ascii=False)[1:-1] if '"name"' in form.before else tool
        return f"{self.lark.text(name + form.behind)} {self._arguments(form, tool)}"

    def _arguments(self, form: Form, tool: str) -> str:
        schema = self.tools.schemas[tool]
        if self.dialect.style == "tags":
            return TagArguments(self.lark, self.dialect, form, self.tools, tool).body()
        if self.dialect.style == "braces":
            return BraceArguments(self.lark, self.dialect, schema).body()
        return self.lark.json({"type": "object", **schema} if isinstance(schema, Mapping) else {"type": "object"})
