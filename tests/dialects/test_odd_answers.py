"""Answers that no model should write: damaged ones, in every dialect. Nothing raises, nothing is lost, and it does not
matter how they are cut.

    HEADRACE_ANSWERS=100000 python -m pytest tests/dialects/test_odd_answers.py
"""

from __future__ import annotations

import os
import random

import pytest
from answers import CASES, Case
from reading import PLAIN, TOKENS, TOOLS, Token, brief, events, joined, machine, tokens

from headrace.loaders.tokens.dialects import families

COUNT = int(os.environ.get("HEADRACE_ANSWERS", "3000"))
BY_DIALECT = {name: [case for case in CASES if case.dialect == name] for name in families.NAMES}
SIGNS = "{}[]\":,\\ \n\t<>/=_-+0123456789.eEtfnuaŁ😀`'|"
BITS = [
    "null", "True", '"name": ', '"arguments": ', "get_weather", "get_time", "functions.", "to=functions.get_time", "`",
    "```", "</parameter>", "<parameter=city>", "<function=get_time>", "</function>", '<invoke name="get_time">',
    "</invoke>", '<parameter name="city">', "call:", "analysis", "final", "assistant", "\\u12", '\\"', "\n\n",
]  # fmt: skip
# Words that the answers say, and that are no part of any markup.
WORDS = ["Hello", "world", "Hm", "Yes", "Łódź", "look", "Done", "rains", "marks", "then", "Let"]


def damaged(draw: random.Random, case: Case) -> list[Token]:
    """The tokens of an answer, some of them missing, twice, elsewhere or new."""
    dialect = families.NAMES[case.dialect]
    with_marks = draw.random() < 0.7
    found = tokens(dialect, case.answer, with_marks, shows_marks=draw.random() < 0.5)
    for _ in range(draw.randrange(1, 5)):
        start = draw.randrange(len(found) + 1)
        end = min(len(found), start + draw.choice([1, 1, 2, 5, 20]))
        kind = draw.randrange(7)
        if kind == 0:
            del found[start:end]
        elif kind == 1:
            found[start:start] = found[start:end]
        elif kind == 2:
            piece, found[start:end] = found[start:end], []
            place = draw.randrange(len(found) + 1)
            found[place:place] = piece
        elif kind == 3:
            found[start:start] = [(PLAIN, sign) for sign in draw.choices(SIGNS, k=draw.randrange(1, 4))]
        elif kind == 4:
            found[start:start] = [(PLAIN, sign) for sign in draw.choice(BITS)]
        elif kind == 5 and TOKENS[case.dialect]:
            found[start:start] = tokens(dialect, draw.choice(TOKENS[case.dialect]), with_marks)
        else:
            other = tokens(dialect, draw.choice(BY_DIALECT[case.dialect]).answer, with_marks)
            found[start:start] = other[draw.randrange(len(other)) :]
    return found


def counted(text: str) -> dict[str, int]:
    return {word: text.count(word) for word in WORDS}


@pytest.mark.parametrize("part", range(10))
def test_damaged_answers_are_read(part: int) -> None:
    draw = random.Random(part)
    cases = [case for case in CASES if case.answer]
    for number in range(COUNT // 10):
        case = draw.choice(cases)
        some = damaged(draw, case)
        tools = None if draw.random() < 0.1 else TOOLS
        prompt = draw.choice(BY_DIALECT[case.dialect]).prompt if draw.random() < 0.2 else case.prompt
        state = draw.getstate()
        with_marks = any(token != PLAIN for token, _ in some)
        what = (part, number, str(case), prompt, "".join(piece for _, piece in some))
        found = events(machine(case.dialect, with_marks, prompt, tools), some)
        said = brief(found)
        cuts = sorted(draw.sample(range(len(some) + 1), k=min(len(some), draw.choice([0, 1, 3, 9]))))
        assert events(machine(case.dialect, with_marks, prompt, tools), joined(some, cuts)) == found, what
        heard = counted("\0".join("\0".join(one[1:]) for one in said))
        written = counted("".join(piece if token == PLAIN else "\0" for token, piece in some))
        assert all(heard[word] >= written[word] for word in WORDS), (said, what)
        if draw.random() < 0.3:
            size = draw.randrange(len(some) + 1)
            brief(events(machine(case.dialect, with_marks, prompt, tools), some[:size], cut=draw.random() < 0.5))
        draw.setstate(state)
