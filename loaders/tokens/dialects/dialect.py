"""What dialects differ in, as data: the marks around reasoning and calls, and how a call is written.

Marks are texts. Where a model's vocabulary has one as a token of its own, that token alone is the mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Texts = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Tags:
    """A call whose arguments stand between marks, one by one: name, then keys and values, then `end`.

    name_end: behind the name; those of `name_before` end it too, but belong to what follows. key: before a key.
    key_end: behind a key, and whether that says the value is text (True) or JSON (False; None: the tool's schema says).
    value: what may stand before a value. value_end: behind it.
    """

    name_end: Texts
    name_before: Texts = ()
    key: str
    key_end: tuple[tuple[str, bool | None], ...]
    value: Texts = ()
    value_end: Texts
    end: Texts


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a family of models writes answers.

    think: marks around reasoning. section: marks around calls together; call: around each. style: how a call is
    written: "json" is an object (or a list of them) with name and arguments, or a name, one of `separators`, and the
    arguments; "tags" as `tags` says; "braces" is Gemma's; "channels" is harmony's, where all that is said has a header.
    bare: whether a tool's name before a key counts as a call that lacks its first mark.
    drafts: whether calls within reasoning are drafts, except where the answer ends with them; else they end it.
    ids: whose the ids of calls are: "made" here, as nine characters ("nine"), or of the "model".
    stop_tokens: tokens that end an answer besides the model's own. turns: what a prompt has before the answer.
    """

    name: str
    think: tuple[Texts, Texts] | None = None
    section: tuple[Texts, Texts] | None = None
    call: tuple[Texts, Texts] = ((), ())
    style: Literal["none", "json", "tags", "braces", "channels"] = "none"
    tags: Tags | None = None
    separators: Texts = ()
    bare: bool = False
    drafts: bool = True
    ids: Literal["made", "nine", "model"] = "made"
    stop_tokens: Texts = ()
    turns: Texts = ()

    @property
    def opens_call(self) -> Texts:
        """Marks that calls begin with."""
        return (*(self.section[0] if self.section else ()), *self.call[0])
