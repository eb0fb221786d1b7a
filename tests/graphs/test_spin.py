"""Kernels that write and await the mailbox's flags, in the interpreter; the coordinator on the other side is real."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from stand_in_gpu import StandIn

pytest.importorskip("triton", reason="the GPU kernels need Triton", exc_type=ImportError)

from headrace import LLM, DeviceError, SamplingParams
from headrace.engine.cuda_graphs.signals import Spin
from headrace.kernels import FORMATS, ExpertLayout, load
from headrace.kernels.cases.case import RandomSource
from headrace.kernels.context import Context
from headrace.kernels.cpu.mailbox import Mailbox
from headrace.kernels.gpu import spin


def flags(*values: int) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.int64) for value in values]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    source = RandomSource(torch.Generator().manual_seed(5))
    layout = ExpertLayout(format=FORMATS["q8_0"], hidden=64, width=32)
    banks = [source.bank(layout, 6) for _ in range(3)]
    box = Mailbox(banks, context=Context(), layers=[4, 5, 6], top_k=2, batches=[1, 4])
    yield box
    box.close()


# ---- the kernels


def test_a_post_sets_both_flags() -> None:
    ready, done = flags(0, 1)
    spin.post(ready, done)
    assert (int(ready), int(done)) == (1, 0)


@pytest.mark.parametrize("answer", [1, 2])
def test_a_wait_ends_where_the_flag_is_set(answer: int) -> None:
    """Also with the answer of a job that failed: `check` says so."""
    done, gave_up = flags(answer, 0)
    spin.wait(done, gave_up, 1e-5)
    assert int(gave_up) == 0


def test_a_wait_goes_on_until_another_thread_sets_the_flag() -> None:
    done, gave_up = flags(0, 0)
    threading.Timer(0.1, lambda: done.fill_(1)).start()
    start = time.perf_counter()
    spin.wait(done, gave_up, 1e3)
    assert time.perf_counter() - start >= 0.1
    assert int(gave_up) == 0


def test_a_wait_gives_up_and_later_ones_look_once() -> None:
    done, gave_up = flags(0, 0)
    spin.wait(done, gave_up, 1e-4)  # of which the interpreter makes a hundred looks
    assert int(gave_up) == 1
    spin.wait(done, gave_up, 1e9)
    assert int(done) == 0


# ---- jobs


def way_of(mailbox: Mailbox) -> tuple[Spin, list[int]]:
    """The way, and the handles of the streams that its kernels were launched in."""
    seen: list[int] = []

    def stream(handle: int) -> AbstractContextManager[Any]:
        seen.append(handle)
        return nullcontext()

    return Spin(mailbox, stream), seen


def test_jobs_are_answered(mailbox: Mailbox) -> None:
    way, seen = way_of(mailbox)
    for seed in range(4):
        batch, generator = seed % 2, torch.Generator().manual_seed(seed)
        mailbox.begin(batch)
        for layer, bank in enumerate(mailbox.banks):
            slot = mailbox.slot(layer, batch)
            weights, ids = torch.rand(len(slot.x_TD), 6, generator=generator).topk(2)
            slot.x_TD.normal_(generator=generator)
            slot.ids_TK.copy_(ids)
            slot.weights_TK.copy_(weights)
            wanted = load("cpu").experts(slot.x_TD, slot.ids_TK, slot.weights_TK, bank)
            way.publish(77, slot)
            way.await_result(77, slot)
            assert torch.equal(slot.y_TD, wanted)
        mailbox.check()
    assert set(seen) == {77}


def test_kernels_are_tried_on_flags_of_no_slot(mailbox: Mailbox) -> None:
    way, _ = way_of(mailbox)
    way.warm(1)
    assert mailbox.box.served() == 0
    assert int(mailbox.gave_up) == 0
    mailbox.check()


def test_a_wait_that_gave_up_is_an_error(mailbox: Mailbox) -> None:
    """Nobody told the mailbox of the step, so nobody answers."""
    way, _ = way_of(mailbox)
    mailbox.timeout = 1e-5
    way.await_result(1, mailbox.slot(0, 0))
    with pytest.raises(DeviceError, match=r"the GPU gave up waiting for experts after 2e-05 s.*Load the model again"):
        mailbox.check()
    with pytest.raises(DeviceError, match="gave up"):
        mailbox.begin(0)


# ---- a model


def test_a_model_says_the_same(gpu: StandIn) -> None:
    greedy = SamplingParams(max_new_tokens=6, ignore_eos=True)
    said = []
    for way in ("memop", "spin"):
        with LLM("demo", device="simulated", cpu_moe=True, max_context=96, max_sequences=2, handoff=way) as llm:
            assert llm.parts.graphed is not None
            said.append([one.token_ids for one in llm.generate(["In the beginning", "And"], greedy)])
            assert llm.parts.signal_choice is not None
            assert llm.parts.signal_choice.name == way
    assert said[0] == said[1]
