"""Stop strings: found across tokens, never shown, and nothing else held back for longer than needed."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import SamplingParams
from headrace.engine.generation.request import Request
from headrace.engine.generation.sequence import make_sequence
from headrace.engine.generation.stop_strings import TextBuilder


class Letters:
    """A tokenizer whose tokens are pieces of text."""

    def stream(self) -> Letters:
        return self

    def push(self, piece: Any) -> str:
        return str(piece)

    def finish(self) -> str:
        return ""


def run(pieces: list[str], stop: list[str]) -> tuple[list[str], str, bool]:
    text = TextBuilder(Letters(), stop)  # type: ignore[arg-type]
    shown = []
    for piece in pieces:
        shown.append(text.push(piece))  # type: ignore[arg-type]
        if text.stopped:
            break
    shown.append(text.finish())
    return shown, text.text, text.stopped


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    assert run(["ab", "c"], []) == (["ab", "c", ""], "abc", False)


@pytest.mark.parametrize("pieces", [["hello END more"], ["hello E", "N", "D more"], list("hello END more")])
def test_a_stop_string_is_found_across_tokens_and_not_shown(pieces: list[str]) -> None:
    shown, text, stopped = run(pieces, ["END"])
    assert "".join(shown) == text == "hello "
    assert stopped


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    shown, text, stopped = run(["a\n", "b\n", "\n", "c"], ["\n\n"])
    assert shown == ["a", "\nb", "", ""]
    assert (text, stopped) == ("a\nb", True)


def test_what_was_held_back_comes_at_the_end() -> None:
    shown, text, _ = run(["abc", "EN"], ["END"])
    assert shown == ["abc", "", "EN"]
    assert text == "abcEN"


def test_a_stop_string_that_begins_again_within_itself_is_held_back_in_time() -> None:
    assert run(["a" * 9, "ac", "aab"], ["aaab"]) == (["a" * 6, "a" * 4 + "c", "aab", ""], "a" * 10 + "caab", False)
    assert run(["a" * 9, "ab"], ["aaab"])[1:] == ("a" * 7, True)


def test_a_stop_string_may_stay_at_the_end() -> None:
    text = TextBuilder(Letters(), ["END", "more"], keeps=True)  # type: ignore[arg-type]
    assert [text.push(piece) for piece in ("a E", "ND more")] == ["a ", "END"]  # type: ignore[arg-type]
    assert (text.stopped, text.hit, text.text) == (True, "END", "a END")


def test_the_first_of_several_stop_strings_wins() -> None:
    assert run(["one two three"], ["three", "two"])[1] == "one "


def test_a_stop_string_in_what_was_held_back_by_the_tokenizer_ends_the_request() -> None:
    class Late(Letters):
        def push(self, piece: Any) -> str:
            return ""

        def finish(self) -> str:
            return "one\ntwo"

    one = make_sequence(0, [1], SamplingParams(max_new_tokens=1, stop=("\n",)))
    request = Request(one, TextBuilder(Late(), ["\n"]))  # type: ignore[arg-type]
    one.tokens.append(5)
    request.push(())
    assert request.chunks[0].text == "one"
    assert request.chunks[0].finish_reason == "stop"


def test_overlapping_beginnings() -> None:
    shown, text, stopped = run(["a", "a", "a", "b"], ["aab"])
    assert "".join(shown) == text == "a"
    assert stopped


def test_a_request_is_open_until_its_last_piece_is_there() -> None:
    """Readers in other threads leave when it is not."""
    seen = []

    class Watched(Letters):
        def finish(self) -> str:
            seen.append((request.is_open, len(request.chunks)))
            return "held back"

    one = make_sequence(0, [1], SamplingParams(max_new_tokens=1))
    request = Request(one, TextBuilder(Watched(), []))  # type: ignore[arg-type]
    one.tokens.append(2)
    request.push([])
    assert seen == [(True, 0)]
    assert not request.is_open
    assert [(chunk.text, chunk.finish_reason) for chunk in request.chunks] == [("2held back", "length")]
