"""Passes without end: what a ledger and a request keep of them, and that the sums miss none."""

from __future__ import annotations

import weakref

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.ledger.ledger import Ledger
from headrace.engine.ledger.passes import Pass, Prediction, Times
from headrace.engine.ledger.summary import Account, join, summarise


def made(index: int, phase: str = "decode") -> Pass:
    times = Times(busy={"cpu_dram": 0.5}, waits={}, overlap_s=0.0, idle_s=0.0, outside_s=0.5)
    return Pass(
        index=index, phase=phase, sequences=[index % 3], tokens=1 + index % 2, context=index,
        bytes={"cpu_dram": {"experts": index, "kv": 2}}, measured_s=1.0, times=times,
    )  # fmt: skip


def predict(done: Pass) -> Prediction:
    return Prediction(terms={"cpu_dram": 0.25, "fixed": 0.25}, seconds=0.5)


def test_a_ledger_holds_no_more_passes_however_many_there_were() -> None:
    """Passes are counted, not bytes: whenever one is done, no more are there than twice what is kept, and no collector
    had to look for them. So a million take as much memory as these."""
    ledger, ended = Ledger(predict, kept=100), 0

    def forget() -> None:
        nonlocal ended
        ended += 1

    for index in range(20_000):
        one = made(index)
        weakref.finalize(one, forget)
        ledger.add(one)
        del one
        assert index + 1 - ended < 200
    assert ledger.count == 20_000
    decode = ledger.summary("decode")
    assert (decode.passes, decode.tokens) == (20_000, 30_000)
    assert decode.bytes == {"cpu_dram": {"experts": 19_999 * 10_000, "kv": 40_000}}
    assert decode.predicted_s == 10_000


@pytest.mark.parametrize("kept", [1, 2, 7, 1000])
def test_sums_are_those_of_all_passes(kept: int) -> None:
    """Whatever became sums on the way: times, predictions and both phases."""
    account, passes = Account(kept), [made(i, "prefill" if i % 5 == 0 else "decode") for i in range(100)]
    for one in passes:
        one.expect = predict
        account.add(one)
    assert account.count == 100
    assert list(account.recent) == passes[-len(account.recent) :]
    assert min(kept, 100) <= len(account.recent) < 2 * kept or kept >= 100
    for phase in ("prefill", "decode"):
        assert account.summary(phase) == summarise(passes, phase)


def test_sums_know_no_more_than_their_parts() -> None:
    """A prediction that one pass lacks is not the sum's either."""
    known, unknown = made(1), made(2)
    known.expect = predict
    both = join(summarise([known], "decode"), summarise([unknown], "decode"))
    assert both.predicted is None
    assert both.measured_s == 2.0
    assert join(summarise([], "decode"), both) == both == join(both, summarise([], "decode"))


def test_a_request_is_not_charged_for_the_age_of_the_process() -> None:
    """Its own passes alone are looked at when it ends, however many the ledger saw."""
    llm = LLM("demo", kernels="reference", max_context=64)
    greedy = SamplingParams(max_new_tokens=3, ignore_eos=True)
    first = llm.generate([[1, 2]], greedy)[0]
    for index in range(5000):
        llm.ledger.add(made(10_000 + index))
    second = llm.generate([[1, 2]], greedy)[0]
    assert len(first.ledger) == len(second.ledger) == 3
    assert {i for one in second.ledger for i in one.sequences} == {1}
    assert [p.index for p in second.ledger] == [5003, 5004, 5005]


def test_a_recording_has_every_pass_of_its_block_and_no_other() -> None:
    ledger = Ledger(kept=2)
    ledger.add(made(0))
    with ledger.recording() as outer:
        ledger.add(made(1))
        with ledger.recording() as inner:
            for index in range(2, 9):
                ledger.add(made(index))
    ledger.add(made(9))
    assert [p.index for p in outer] == list(range(1, 9))
    assert [p.index for p in inner] == list(range(2, 9))
    assert ledger.last.index == 9
