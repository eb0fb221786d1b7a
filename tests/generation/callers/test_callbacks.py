"""What callers hand over and take away: samplers that fail or ask again, models that are copied, answers shown."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from headrace import LLM, HeadraceError, OptionError

SHORT = {"max_new_tokens": 4}


class Sampler:
    """Calls what a test wants, or takes the likeliest token."""

    def __init__(self) -> None:
        self.call: Any = None

    def __call__(self, logits: Any, sequences: Any, ops: Any) -> list[int]:
        if self.call is not None:
            self.call()
        return [int(one) for one in logits.argmax(-1)]


SAMPLER = Sampler()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", no_measure=True, sampler=SAMPLER) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_is_left(llm: LLM) -> Iterator[None]:
    SAMPLER.call = None
    yield
    SAMPLER.call = None
    assert not llm.loop.requests
    assert llm.generate("In the", SHORT)[0].token_ids


def test_a_sampler_that_fails_ends_what_it_was_called_for(llm: LLM) -> None:
    SAMPLER.call = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        llm.generate(["a", "b"], SHORT)
    with pytest.raises(ZeroDivisionError):
        next(llm.stream("a", SHORT))


def test_a_sampler_cannot_ask_its_own_model(llm: LLM) -> None:
    SAMPLER.call = lambda: llm.generate("b", SHORT)
    with pytest.raises(HeadraceError, match="within the pass"):
        llm.generate("a", SHORT)


def test_a_stream_that_is_dropped_ends_its_request(llm: LLM) -> None:
    stream = llm.stream("In the beginning", {"max_new_tokens": 100})
    next(stream)
    del stream
    assert not llm.loop.requests


def test_a_model_is_not_copied(llm: LLM) -> None:
    for copies in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copies(llm)


def test_what_a_notebook_shows_is_short(llm: LLM) -> None:
    (made,) = llm.generate("In the", SHORT)
    assert len(repr(made)) < 300
    assert repr(llm) == "LLM('demo')"
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_word_that_a_chat_does_not_know_is_named(llm: LLM) -> None:
    with pytest.raises(OptionError, match=r"no 'temperature'.*params"):
        llm.chat([{"role": "user", "content": "Hello"}], temperature=1)
