"""What answers of each dialect say, however they are cut into tokens, and whether the vocabulary has their marks."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from answers import CASES, Case
from reading import brief, events, joined, machine, tokens

from headrace.loaders.tokens.dialects import families
from headrace.loaders.tokens.dialects.events import CallArguments, Event

ALL = "HEADRACE_ANSWERS" in os.environ  # every place
IDS = [str(case) for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("with_marks", [True, False], ids=["tokens", "text"])
def test_an_answer_is_read(case: Case, with_marks: bool) -> None:
    dialect = families.NAMES[case.dialect]
    for shows in (True, False):
        signs = tokens(dialect, case.answer, with_marks, shows)
        whole = joined(signs, ())
        found = events(machine(dialect, with_marks, case.prompt), whole)
        assert brief(found) == case.said
        assert events(machine(dialect, with_marks, case.prompt), signs) == found, "by characters"


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("with_marks", [True, False], ids=["tokens", "text"])
def test_it_says_the_same_wherever_it_is_cut(case: Case, with_marks: bool) -> None:
    dialect = families.NAMES[case.dialect]
    signs = tokens(dialect, case.answer, with_marks)
    wanted = events(machine(dialect, with_marks, case.prompt), signs)
    for place in range(1, len(signs), 1 if ALL else 1 + len(signs) // 12):
        assert events(machine(dialect, with_marks, case.prompt), joined(signs, [place])) == wanted, place
    for width in (2, 3, 5):
        cuts = range(0, len(signs), width)
        assert events(machine(dialect, with_marks, case.prompt), joined(signs, cuts)) == wanted, width


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_answer_may_end_anywhere(case: Case) -> None:
    """What had been given when it was cut is what is given when it goes on, and arguments are completed as JSON."""
    dialect = families.NAMES[case.dialect]
    signs = tokens(dialect, case.answer)
    goes_on = machine(dialect, prompt=case.prompt)
    whole = flat([*itertools.chain(*(goes_on.push(*sign) for sign in signs)), *goes_on.finish()])
    for place in range(0, len(signs), 1 if ALL else 1 + len(signs) // 20):
        reader = machine(dialect, prompt=case.prompt)
        given = [event for token, piece in signs[:place] for event in reader.push(token, piece)]
        assert whole[: len(flat(given))] == flat(given)
        for said in brief([*given, *reader.finish()]):
            if said[0] == "call" and not said[2].startswith(("`", "{'")):  # nobody wrote JSON
                json.loads(said[2])
        brief(events(machine(dialect, prompt=case.prompt), signs[:place], cut=True))


def flat(some: list[Event]) -> list[object]:
    """Events by characters."""
    found: list[object] = []
    for event in some:
        text = getattr(event, "text", None) or (event.piece if isinstance(event, CallArguments) else None)
        found += [event] if text is None else [(type(event), sign) for sign in text]
    return found
