"""Requests whose owner wants their tokens at the end."""

from __future__ import annotations

import pytest

from headrace.engine.config import SamplingParams
from headrace.engine.generation.request import Request
from headrace.engine.generation.sequence import make_sequence
from headrace.engine.generation.stop_strings import TextBuilder


def test_one_whose_tokens_cannot_be_kept_ends() -> None:
    """Readers in other threads wait as long as it is open."""

    def fails(_: list[int]) -> None:
        raise MemoryError("no room for an answer")

    sequence = make_sequence(1, [5, 6], SamplingParams(max_new_tokens=1))
    request = Request(sequence, TextBuilder(None, ()), keep=fails)
    sequence.tokens.append(7)
    with pytest.raises(MemoryError, match="no room"):
        request.push(())
    assert not request.is_open
    assert [chunk.token_id for chunk in request.chunks] == [7]
