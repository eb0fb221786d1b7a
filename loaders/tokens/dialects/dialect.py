"""What dialects differ in, as data: the marks around reasoning and calls, and how a call is written.

Marks are texts. Where a model's vocabulary has one as a token of its own, that token alone is the mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Texts = tuple[str, ...]
LINE, NUMBER = "\x00", "\x01"  # in the texts of a form: a line break that may be missing, and a number


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
class Form:
    """How a model that is held to its tools writes calls: of all that is understood, the way it was trained on.

    begin, end: around all calls of an answer. before, behind: around the name of one; after: behind its arguments.
    between: two calls. wakes: the part of `begin` and `before` behind which nothing but a call can come. lead: what may
    stand before calls, as two texts with any text between. value: between the mark behind a key and its value, gap:
    behind the mark that ends a value, of dialects with `Tags`. answer: before an answer that is no call. needs: marks
    that must be tokens of the vocabulary; lacks: and must not.
    """

    begin: str = ""
    end: str = ""
    before: str
    behind: str = ""
    after: str = ""
    between: str = ""
    wakes: str
    lead: tuple[str, str] | None = None
    value: str = ""
    gap: str = ""
    answer: str = ""
    needs: Texts = ()
    lacks: Texts = ()


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
    forms: how calls are written where a grammar says so, one way or several (`forms/`).
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
    forms: tuple[Form, ...] = ()

    @property
    def opens_call(self) -> Texts:
        """Marks that calls begin with."""
        return (*(self.section[0] if self.section else ()), *self.call[0])
