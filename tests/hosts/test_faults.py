"""A host that dies, stops or comes back while requests run: the same tokens, soon, or an error that names it."""

from __future__ import annotations

import random
import signal
import time

import pytest
from host_processes import experts_of, free_port, hosts_of, later

from headrace import LLM, SamplingParams
from headrace.errors import DeviceError

PROMPTS = ["In the beginning", "And it came to pass, when the children of Israel saw it", "Behold,"]
GREEDY = SamplingParams(max_new_tokens=40, ignore_eos=True)
TIMEOUT, SLACK = 1.0, 3.0  # seconds


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    with LLM("demo", device="cpu", max_context=128, no_measure=True) as llm:
        return [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]


def wait_for(llm: LLM, returns: int) -> None:
    """Until so many hosts have come back: between two passes."""
    end = time.monotonic() + 60
    while experts_of(llm).members.returns < returns:
        assert time.monotonic() < end, "no host came back"
        llm.generate(["And"], SamplingParams(max_new_tokens=2))
        time.sleep(0.1)


def test_kill_and_stop_at_random_times(expected: list[list[int]]) -> None:
    """Six times, each while tokens are made; a host that was killed is started again, one that was stopped goes on."""
    draw = random.Random(11)
    with hosts_of("demo", 2, host_timeout=TIMEOUT) as (hosts, llm):
        usual = time.monotonic()
        llm.generate(PROMPTS, GREEDY)
        usual = time.monotonic() - usual
        for number in range(6):
            name, how = draw.choice(["h1", "h2"]), signal.SIGSTOP if number % 3 else signal.SIGKILL
            start = time.monotonic()
            with later(draw.random() * usual, hosts.signal, name, how):
                found = [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]
            assert found == expected, (number, name, how)
            again = [r.token_ids for r in llm.generate(PROMPTS, GREEDY)]
            assert again == expected, (number, name, how)
            assert time.monotonic() - start < TIMEOUT + SLACK + 4 * usual + 1
            assert experts_of(llm).members.losses == number + 1
            if how is signal.SIGSTOP:
                hosts.signal(name, signal.SIGCONT)
            else:
                hosts.restart(name)
            wait_for(llm, number + 1)
        members = experts_of(llm).members
        assert members.owners == members.home


def test_the_last_one(expected: list[list[int]]) -> None:
    """Its experts are read by the coordinator, from the model's files; without room for them the request ends with a
    word, and a host that comes later helps."""
    with hosts_of("demo", 1, host_timeout=TIMEOUT) as (hosts, llm):
        hosts.end("h1")
        assert [r.token_ids for r in llm.generate(PROMPTS, GREEDY)] == expected
        assert experts_of(llm).shelf.adopted
    with hosts_of("demo", 1, host_timeout=TIMEOUT) as (hosts, llm):
        experts_of(llm).members.fallback = False
        hosts.end("h1")
        for _ in range(2):
            with pytest.raises(
                DeviceError, match=r"host h1 was lost .* nobody has room .* start headrace host there again"
            ):
                llm.generate(PROMPTS, GREEDY)
        hosts.restart("h1")
        end = time.monotonic() + 60
        while experts_of(llm).parts.gathering.arrivals.empty():
            assert time.monotonic() < end, "it did not come back"
            time.sleep(0.05)
        assert [r.token_ids for r in llm.generate(PROMPTS, GREEDY)] == expected


def test_nobody_comes() -> None:
    with pytest.raises(DeviceError, match=r"0 of 2 hosts joined 127\.0\.0\.1:.* start headrace host MODEL --join"):
        LLM("demo", hosts=2, listen=f"127.0.0.1:{free_port()}", host_wait=0.2, no_measure=True)
