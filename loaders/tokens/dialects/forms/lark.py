"""A grammar in llguidance's Lark as it grows: rules, terminals, and texts in which marks that are tokens are tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .....errors import OptionError
from ..dialect import LINE, NUMBER
from ..lexer import FIRST, Vocabulary

ANY_TEXT = "/(?s:.*)/"
BLANKS = r"[ \n]{0,16}"  # between what JSON consists of; without a bound some models write blanks for ever
_OPEN = {LINE: r"\n?", NUMBER: "[0-9]{1,4}"}
_SIGNS = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~/])")
_TOKENS = re.compile("([\ud800-\udfff])")


def pattern(text: str) -> str:
    """A regular expression that matches a text, as it stands between slashes."""
    return "".join(_OPEN.get(sign) or _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(sign) or _SIGNS.sub(r"\\\1", sign)


class Lark:
    """Rules that are made one by one. vocabulary: which marks are tokens. ends: tokens that end an answer: a grammar
    allows those anyway at its end. is_lenient: keywords of schemas that are not known say nothing."""

    def __init__(self, vocabulary: Vocabulary, ends: Iterable[int] = (), is_lenient: bool = False) -> None:
        self.vocabulary, self.ends = vocabulary, frozenset(ends)
        self._guidance = {"whitespace_pattern": BLANKS, **({"lenient": True} if is_lenient else {})}
        self._bodies: dict[str, str] = {}  # by name
        self._names: dict[str, str] = {}  # by body

    def whole(self, start: str) -> str:
        """The grammar. start: the body of its first rule."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._bodies.items())])

    def rule(self, body: str, kind: str = "r", lazy: bool = False) -> str:
        """The name of a rule with this body; the same one for the same body."""
        key = f"{kind}{lazy}{body}"
        if key not in self._names:
            name = f"{kind}{len(self._names)}"
            self._names[key] = name
            self._bodies[f"{name}[lazy]" if lazy else name] = body
        return self._names[key]

    def reserve(self, kind: str = "r") -> str:
        """A name for a rule whose body comes later, by `fill`: rules may refer to each other."""
        name = f"{kind}{len(self._names)}"
        self._names[f"reserved {name}"] = name
        return name

    def fill(self, name: str, body: str) -> None:
        """The body of a rule that was reserved."""
        self._bodies[name] = body

    def terminal(self, body: str) -> str:
        """The name of a terminal."""
        return self.rule(body, "T")

    def json(self, schema: Any) -> str:
        """A value that a JSON schema allows. Raises OptionError for one that allows none."""
        if schema is False:
            raise OptionError("a schema is false, which allows no value at all")
        whole = {**(schema if isinstance(schema, Mapping) else {}), "x-guidance": self._guidance}
        return self.rule(f"%json {json.dumps(whole)}", "j")

    def text(self, text: str) -> str:
        """A text with its marks."""
        return " ".join(self._pieces(text)) or '""'

    def _pieces(self, text: str) -> list[str]:
        return [self._piece(one) for one in _TOKENS.split(self.vocabulary.spell(text)) if one]

    def _piece(self, text: str) -> str:
        if ord(text[0]) >= FIRST and (token := self.vocabulary.token_of(text)) is not None:
            return f"<[{token}]>"
        if any(sign in text for sign in _OPEN):
            return self.terminal(f"/{pattern(text)}/")
        return json.dumps(text, ensure_ascii=False)

    def is_end(self, text: str) -> bool:
        """Whether a text is a token that ends the answer."""
        return self.vocabulary.token_of(self.vocabulary.spell(text)) in self.ends

    def free(self, terminal: str, end: str) -> str:
        """What a terminal matches, up to the first place where `end` stands, that included."""
        first, *rest = _TOKENS.split(self.vocabulary.spell(end), maxsplit=1)
        if not rest:
            return self.rule(f"{terminal} {self._as_terminal(first)}", "f", lazy=True)
        more = " ".join([self._piece(rest[0]), *self._pieces(self.vocabulary.literal(rest[1]))])
        # What stands before a token is part of the text's own lexeme: the token is where that ends.
        return f"{self.terminal(f'{terminal} {self._as_terminal(first)}') if first else terminal} {more}"

    def _as_terminal(self, text: str) -> str:
        return self.terminal(f"/{pattern(text)}/")

    def without(self, bad: Iterable[str], limits: Iterable[str] = ()) -> str:
        """A terminal: any text with none of these patterns in it, and all of the limits, which match whole texts."""
        body = [f"/{one}/" for one in limits] or [ANY_TEXT]
        if together := "|".join(bad):
            body.append(f"~/(?s:.*)({together})(?s:.*)/")
        return self.terminal(" & ".join(body))
